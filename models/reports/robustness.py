"""Robustness of a classifier: accuracy under attacks over eps, with intervals, controls and a verdict on the result."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core.access import Access, LabelOracle, ScoreOracle, WhiteBox
from models.attacks.core.base import Attack, Eps
from models.attacks.core.sweep import iterate_epsilon_sweep, noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.attacks.mifgsm import MIFGSM
from models.capabilities import UNDECIDED, Classifies, misclassified, predicted_classes
from models.family import Family
from models.operations.attack import on_grid
from models.registry import attacks
from models.reports.core import trust
from models.reports.core.base import Params, Progress, Report, Run, Subject
from models.reports.core.classification import class_indices, classifier_access, pack_hits, pack_images
from models.reports.core.robustness_summary import RobustnessSummary
from models.seeds import derive
from models.types import ConfigError

CHUNK, CHUNK_NUMBERS, PROBES = 512, 64 * 12_288, 64
"""Maximum images in an attack at once, and maximum pixel values of them together; images for the checks of trust."""
GALLERY, GALLERY_NUMBERS = 8, 1 << 17
"""Maximum images in the gallery, and maximum pixel values of all their versions together."""


class RobustnessParams(Params):
    """The attacks, their radii, and the images."""

    attacks: list[str | dict[str, Any]] = Field(
        ["fgsm", "pgd", {"method": "square", "queries": 500}],
        min_length=1,
        max_length=16,
        description="Names of attacks, or objects with `method` and its settings.",
    )
    eps: Annotated[list[Eps], Field(min_length=1, max_length=64)] = Field(
        ["0/255", "2/255", "4/255", "8/255", "16/255", "32/255", "64/255"],
        description="Radii: numbers, or fractions such as 8/255.",
    )
    norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of every attack.")
    images: int = Field(200, ge=1, le=10_000, description="Maximum number of validation images, drawn at random.")
    others: list[str] = Field(
        [],
        max_length=4,
        description="Models on which MI-FGSM makes further adversarial examples, which are shown to this model.",
    )


class RobustnessReport(Report):
    """Robust accuracy is the fraction of all images that are classified correctly clean and under every attack.

    Success is tested on 8-bit images. A minimum-norm attack covers all eps in one run.
    """

    name = "robustness"
    summary = "Accuracy under attack over eps, with intervals, controls and a verdict on how credible it is."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = RobustnessParams
    price = {
        "forwards": "images * (attack_forwards + count_eps + 1 + count_others * count_eps * 13)"
        " + min(images, 64) * 120",
        "backwards": "images * (attack_backwards + count_others * count_eps * 10) + min(images, 64) * 102",
    }

    def run(self, subject: Subject, params: RobustnessParams, progress_state: Any = None) -> Run:
        study = Study(subject, params)
        records = list(progress_state or [])
        if records and len(records[0]["labels"]) != min(study.size, len(study.index)):
            records = []  # of an earlier release, with other blocks
        total = len(study.blocks)
        for number in range(len(records), total):
            block = study.run_block(*study.blocks[number])
            while True:
                try:
                    next(block)
                except StopIteration as end:
                    records.append(end.value)
                    break
                yield Progress(number, total)
            yield Progress(number + 1, total, records)
        by_attack = [(name, record) for (_, name), record in zip(study.blocks, records, strict=True)]
        return study.summary.result(by_attack)


class Study:
    """The images, attacks and radii of a report, divided into blocks (chunk of images, attack).

    Each block gives a record of plain JSON, so a report resumes after the last finished block.
    """

    def __init__(self, subject: Subject, params: RobustnessParams):
        self.subject, self.params, self.model = subject, params, subject.model
        self.check_others(subject.others)
        self.attacks = by_name([attack_of(item, params.norm) for item in params.attacks])
        grid = sorted({on_grid(params.norm, value) for value in params.eps})
        self.eps = torch.tensor(grid, dtype=torch.float32)
        draws = torch.Generator().manual_seed(derive(subject.seed, "robustness") % 2**63)
        rows = len(subject.validation.columns["images"])
        self.index = torch.randperm(rows, generator=draws)[: params.images].sort().values
        self.classes = class_indices(subject.model.data, subject.data)
        self.size = max(4, min(CHUNK, CHUNK_NUMBERS // max(subject.model.data.pixels, 1)))
        self.box = classifier_access(self.model)
        chunks = range(-(-len(self.index) // self.size))
        self.check_access()
        self.others = {f"from {name}": other for name, other in subject.others.items()}
        names = ["", *self.attacks, *self.others]
        self.blocks = [(chunk, name) for chunk in chunks for name in names]

    @property
    def summary(self) -> RobustnessSummary:
        """Turns the records into the result."""
        names, params = list(self.others), self.params
        return RobustnessSummary(
            self.model.data, self.index.tolist(), params.norm, self.eps, params.eps, self.attacks, names
        )

    def check_others(self, others: dict[str, Family]) -> None:
        """Raises ConfigError for a model of `others` whose images or classes differ from this model's."""
        for name, other in others.items():
            if not isinstance(other, Classifies) or other.data.shape != self.model.data.shape:
                raise ConfigError(
                    f"{name} does not classify images of this model's shape {self.model.data.shape}",
                    field="params/others",
                )
            if other.data.classes != self.model.data.classes:
                raise ConfigError(f"the classes of {name} differ from this model's", field="params/others")

    def check_access(self) -> None:
        """Raises ConfigError for an attack that needs gradients when the model has none."""
        white = [place for place, attack in enumerate(self.attacks.values()) if attack.access == "gradients"]
        if white and not self.box.differentiable(self.rows(0)[0][:1]):
            name = list(self.attacks)[white[0]]
            raise ConfigError(f"{name} needs gradients, and this model has none", f"params/attacks/{white[0]}",
                              "use black-box attacks, such as square and hopskipjump")  # fmt: skip

    def rows(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and seeds of a chunk."""
        index = self.index[chunk * self.size : (chunk + 1) * self.size]
        batch = self.subject.validation.rows(index, ["images", "labels"])
        labels = self.classes[batch["labels"].cpu()]
        seeds = torch.tensor([derive(self.subject.seed, "robustness", int(row)) for row in index], dtype=torch.int64)
        return tuple(part.to(self.model.device) for part in (batch["images"], labels, seeds))

    def access(self, attack: Attack) -> Access:
        """The access that the attack needs, limited to its query budget."""
        budget = attack.config.budget
        if attack.access == "gradients":
            return self.box.with_budget(budget)
        return (ScoreOracle if attack.access == "scores" else LabelOracle)(self.model.logits, budget)

    def run_block(self, chunk: int, name: str):
        """Runs the attack `name` on a chunk of images, "" for none; yields after each step, returns the record."""
        x, labels, seeds = self.rows(chunk)
        if not name:
            yield
            return self.clean_record(chunk, x, labels, seeds)
        radii = self.eps.to(x.device).expand(len(x), -1)
        threat = ThreatModel(self.params.norm, 0.0, 256)
        if name in self.others:
            return (yield from self.transfer_record(self.others[name], x, labels, threat, seeds))
        attack = self.attacks[name]
        runs = yield from iterate_epsilon_sweep(
            attack, self.access(attack), x, Misclassified(labels), threat, radii, seeds
        )
        hits = torch.stack([run.success for run in runs], 1)
        last = runs[-1]
        record = {"hits": pack_hits(hits), "queries": last.queries.tolist(), "gradients": last.gradients.tolist()}
        if not (attack.warm_start or attack.minimal):  # separate runs, whose costs add up
            for key in ("queries", "gradients"):
                record[key] = sum(getattr(run, key) for run in runs).tolist()
        if attack.minimal:
            distances = torch.stack([run.distance for run in runs], 1).amax(1)
            record["distance"] = torch.where(hits.any(1), distances, -1.0).tolist()
        if chunk == 0:
            first = hits.long().argmax(1)
            adversarial = torch.stack([run.images for run in runs], 1)[torch.arange(len(x)), first]
            images = torch.where(hits.any(1).view(-1, 1, 1, 1), adversarial, x)
            record["gallery"] = pack_images(images[: self.gallery_images])
        return record

    @property
    def gallery_images(self) -> int:
        """Number of images in the gallery."""
        versions = self.model.data.pixels * (len(self.attacks) + 1)
        return max(1, min(GALLERY, GALLERY_NUMBERS // versions))

    def clean_record(self, chunk: int, x: Tensor, labels: Tensor, seeds: Tensor) -> dict[str, Any]:
        """Clean predictions and the control of random signs; in the first chunk also the checks of `trust`."""
        logits = self.box.exact(x)
        threat = ThreatModel(self.params.norm, 0.0, 256)
        control = [misclassified(self.box.exact(noise(x, threat.at(eps.item()), seeds)), labels) for eps in self.eps]
        record = {
            "labels": labels.tolist(),
            "answers": predicted_classes(logits).tolist(),
            "control": pack_hits(torch.stack(control, 1)),
        }
        if chunk == 0:
            record["gallery"] = pack_images(x[: self.gallery_images])
            decided = predicted_classes(logits) != UNDECIDED
            probe, probe_labels, probe_seeds = (rows[decided][:PROBES] for rows in (x, labels, seeds))
            positive = self.eps[self.eps > 0]
            eps = float(positive[len(positive) // 2]) if len(positive) else 8 / 255
            flags = []
            if len(probe):
                flags += trust.of_model(self.model, self.box, probe, probe_labels)
                flags += trust.of_attacks(self.box, probe, probe_labels, threat.at(eps), probe_seeds)
            record["flags"] = [flag.facts() for flag in flags]
        return record

    def transfer_record(self, other: Family, x: Tensor, labels: Tensor, threat: ThreatModel, seeds: Tensor):
        """Shows this model the examples that MI-FGSM makes on `other`; returns the record."""
        hits = []
        box = WhiteBox(other.to(x.device), lambda net, images: net.logits(images))
        for eps in self.eps:
            limit = threat.at(float(eps))
            attack = MIFGSM(eps=float(eps), stop_early=False)
            if threat.norm != "linf":
                raise ConfigError(
                    f"examples on other models are made under linf only, not {threat.norm}",
                    field="params/others",
                    remedy="leave it out, or use norm linf",
                )
            result = yield from attack.iterate(box, x, Misclassified(labels), limit, seeds)
            hits.append(misclassified(self.box.exact(limit.quantise(x, result.images)), labels))
        return {"hits": pack_hits(torch.stack(hits, 1)), "queries": [0] * len(x), "gradients": [0] * len(x)}


def attack_of(item: str | dict[str, Any], norm: str) -> Attack:
    """The attack of an item of `params.attacks`, under the norm of the report. Raises ConfigError."""
    config = {"method": item} if isinstance(item, str) else dict(item)
    method = config.pop("method", "fgsm")
    kinds = {name: kind for name, kind in attacks().items() if Classifies in kind.victims}
    if method not in kinds:
        raise ConfigError(
            f"unknown attack {method!r}", field="params/attacks", remedy=f"choose one of {', '.join(kinds)}"
        )
    kind = kinds[method]
    if norm not in kind.norms:
        raise ConfigError(
            f"{method} supports the norm {' or '.join(kind.norms)} only, not {norm}", field="params/attacks"
        )
    if "norm" in kind.Config.model_fields:
        config["norm"] = norm
    config.pop("eps", None)
    return kind(**config)


def by_name(listed: list[Attack]) -> dict[str, Attack]:
    """Attacks by name; the second one of a name is `name 2`, and so on."""
    attacks_by_name: dict[str, Attack] = {}
    for attack in listed:
        same = sum(other.name == attack.name for other in attacks_by_name.values())
        attacks_by_name[f"{attack.name} {same + 1}" if same else attack.name] = attack
    return attacks_by_name
