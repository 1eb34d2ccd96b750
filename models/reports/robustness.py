"""How robust is a classifier? Accuracy under attacks of growing size, with intervals, and whether to believe it."""

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
from models.capabilities import Classifies
from models.family import Family
from models.operations.attack import on_grid
from models.registry import attacks
from models.reports.core import trust
from models.reports.core.base import Params, Progress, Report, Run, Subject
from models.reports.core.class_mapping import classes_in
from models.reports.core.packing import compressed, packed
from models.reports.core.robustness_summary import Account
from models.seeds import derive
from models.types import ConfigError

CHUNK, PROBES = 64, 64
GALLERY, GALLERY_NUMBERS = 8, 1 << 17
"""Images shown, as far as all their versions together have so many numbers."""


class RobustnessParams(Params):
    """Which attacks, how large, on how many images."""

    attacks: list[str | dict[str, Any]] = Field(
        ["fgsm", "pgd", {"method": "square", "queries": 500}],
        min_length=1,
        max_length=16,
        description="Names of attacks, or objects with `method` and its settings.",
    )
    eps: Annotated[list[Eps], Field(min_length=1, max_length=64)] = Field(
        ["0/255", "2/255", "4/255", "8/255", "16/255", "32/255", "64/255"], description="Radii, numbers or k/255."
    )
    norm: Literal["linf", "l2", "l1"] = Field("linf", description="Of every attack.")
    images: int = Field(200, ge=1, le=10_000, description="At most so many images, drawn from the validation split.")
    others: list[str] = Field(
        [], max_length=4, description="Models to make examples on (MI-FGSM) that are then shown to this one."
    )


class RobustnessReport(Report):
    """Robust accuracy is the share of all images that are classified rightly and that no attack turns.

    Examples are 8-bit images; success is tested on them. A minimum-norm attack answers all eps from one run.
    """

    name = "robustness"
    summary = "Accuracy under attack over eps, with intervals, controls and a verdict on how far to trust it."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = RobustnessParams
    price = {
        "forwards": "images * (attack_forwards + count_eps + 1 + count_others * count_eps * 13)"
        " + min(images, 64) * 120",
        "backwards": "images * (attack_backwards + count_others * count_eps * 10) + min(images, 64) * 102",
    }

    def run(self, subject: Subject, params: RobustnessParams, kept: Any = None) -> Run:
        study = Study(subject, params)
        records = list(kept or [])
        total = len(study.blocks)
        for number in range(len(records), total):
            walk = study.walk(*study.blocks[number])
            while True:
                try:
                    next(walk)
                except StopIteration as end:
                    records.append(end.value)
                    break
                yield Progress(number, total)
            yield Progress(number + 1, total, records)
        named = [(name, record) for (_, name), record in zip(study.blocks, records, strict=True)]
        return study.account.findings(named)


class Study:
    """The images, the attacks and the radii of a report, cut into blocks each of which is a record of plain JSON."""

    def __init__(self, subject: Subject, params: RobustnessParams):
        self.subject, self.params, self.model = subject, params, subject.model
        self.check(subject.others)
        self.attacks = named([made(item, params.norm) for item in params.attacks])
        grid = sorted({on_grid(params.norm, value) for value in params.eps})
        self.eps = torch.tensor(grid, dtype=torch.float32)
        draws = torch.Generator().manual_seed(derive(subject.seed, "robustness") % 2**63)
        rows = len(subject.validation.columns["images"])
        self.index = torch.randperm(rows, generator=draws)[: params.images].sort().values
        self.classes = classes_in(subject.model.data, subject.data)
        self.size = max(4, min(CHUNK, CHUNK * 12_288 // max(subject.model.data.pixels, 1)))
        self.box = WhiteBox(self.model, lambda net, x: net.logits(x), shape=self.model.data.shape)
        chunks = range(-(-len(self.index) // self.size))
        self.check_access()
        self.others = {f"from {name}": other for name, other in subject.others.items()}
        names = ["", *self.attacks, *self.others]
        self.blocks = [(chunk, name) for chunk in chunks for name in names]

    @property
    def account(self) -> Account:
        """What makes findings of the records."""
        names, params = list(self.others), self.params
        return Account(self.model.data, self.index.tolist(), params.norm, self.eps, params.eps, self.attacks, names)

    def check(self, others: dict[str, Family]) -> None:
        """Raises ConfigError for a model to make examples on that does not see the same images and classes."""
        for name, other in others.items():
            if not isinstance(other, Classifies) or other.data.shape != self.model.data.shape:
                raise ConfigError(f"{name} does not classify images of the same size", field="params/others")
            if other.data.classes != self.model.data.classes:
                raise ConfigError(f"{name} has other classes", field="params/others")

    def check_access(self) -> None:
        """Raises ConfigError for an attack that needs gradients of a model that gives none."""
        needy = [place for place, attack in enumerate(self.attacks.values()) if attack.access == "gradients"]
        if needy and not self.box.differentiable(self.rows(0)[0][:1]):
            name = list(self.attacks)[needy[0]]
            raise ConfigError(f"{name} needs gradients, and this model gives none", f"params/attacks/{needy[0]}",
                              "name black boxes, such as square and hopskipjump")  # fmt: skip

    def rows(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and seeds of a chunk."""
        index = self.index[chunk * self.size : (chunk + 1) * self.size]
        found = self.subject.validation.rows(index, ["images", "labels"])
        labels = self.classes[found["labels"].cpu()]
        seeds = torch.tensor([derive(self.subject.seed, "robustness", int(row)) for row in index], dtype=torch.int64)
        return tuple(part.to(self.model.device) for part in (found["images"], labels, seeds))

    def access(self, attack: Attack, model: Family | None = None) -> Access:
        budget = attack.config.budget
        if attack.access == "gradients":
            return (self.box if model is None else WhiteBox(model, lambda net, x: net.logits(x))).with_budget(budget)
        return (ScoreOracle if attack.access == "scores" else LabelOracle)(self.model.logits, budget)

    def walk(self, chunk: int, name: str):
        """Steps of one block; returns its record."""
        x, labels, seeds = self.rows(chunk)
        if not name:
            yield
            return self.plain(chunk, x, labels, seeds)
        radii = self.eps.to(x.device).expand(len(x), -1)
        threat = ThreatModel(self.params.norm, 0.0, 256)
        if name in self.others:
            return (yield from self.transferred(self.others[name], x, labels, threat, seeds))
        attack = self.attacks[name]
        runs = yield from iterate_epsilon_sweep(
            attack, self.access(attack), x, Misclassified(labels), threat, radii, seeds
        )
        hits = torch.stack([run.success for run in runs], 1)
        last = runs[-1]
        record = {"hits": packed(hits), "queries": last.queries.tolist(), "gradients": last.gradients.tolist()}
        if not (attack.warm_start or attack.minimal):  # separate runs: each is paid for
            for what in ("queries", "gradients"):
                record[what] = sum(getattr(run, what) for run in runs).tolist()
        if attack.minimal:
            fits = torch.stack([run.distance for run in runs], 1).amax(1)
            record["distance"] = torch.where(hits.any(1), fits, -1.0).tolist()
        if chunk == 0:
            first = hits.long().argmax(1)
            shown = torch.stack([run.images for run in runs], 1)[torch.arange(len(x)), first]
            record["gallery"] = compressed(torch.where(hits.any(1).view(-1, 1, 1, 1), shown, x)[: self.shown])
        return record

    @property
    def shown(self) -> int:
        """Images of the gallery."""
        versions = self.model.data.pixels * (len(self.attacks) + 1)
        return max(1, min(GALLERY, GALLERY_NUMBERS // versions))

    def plain(self, chunk: int, x: Tensor, labels: Tensor, seeds: Tensor) -> dict[str, Any]:
        """The clean answers, the control, and in the first chunk what the model itself gives away."""
        logits = self.box.exact(x)
        threat = ThreatModel(self.params.norm, 0.0, 256)
        control = [self.box.exact(noise(x, threat.at(eps.item()), seeds)).argmax(1) != labels for eps in self.eps]
        record = {
            "labels": labels.tolist(),
            "answers": logits.argmax(1).tolist(),
            "broken": (~torch.isfinite(logits).all(1)).tolist(),
            "control": packed(torch.stack(control, 1)),
        }
        if chunk == 0:
            record["gallery"] = compressed(x[: self.shown])
            some, true, own = x[:PROBES], labels[:PROBES], seeds[:PROBES]
            middle = self.eps[self.eps > 0]
            eps = float(middle[len(middle) // 2]) if len(middle) else 8 / 255
            flags = trust.of_model(self.model, self.box, some, true)
            flags += trust.of_attacks(self.box, some, true, threat.at(eps), own)
            record["flags"] = [flag.facts() for flag in flags]
        return record

    def transferred(self, other: Family, x: Tensor, labels: Tensor, threat: ThreatModel, seeds: Tensor):
        """Examples made on another model with MI-FGSM, shown to this one."""
        hits = []
        box = WhiteBox(other.to(x.device), lambda net, images: net.logits(images))
        for eps in self.eps:
            limit = threat.at(float(eps))
            attack = MIFGSM(eps=float(eps), stop_early=False)
            if threat.norm != "linf":
                raise ConfigError("examples are made on other models under linf only", field="params/others")
            made = yield from attack.iterate(box, x, Misclassified(labels), limit, seeds)
            hits.append(self.box.exact(limit.quantise(x, made.images)).argmax(1) != labels)
        return {"hits": packed(torch.stack(hits, 1)), "queries": [0] * len(x), "gradients": [0] * len(x)}


def made(item: str | dict[str, Any], norm: str) -> Attack:
    """An attack from its name or its settings, under the norm of the report. Raises ConfigError."""
    config = {"method": item} if isinstance(item, str) else dict(item)
    method = config.pop("method", "fgsm")
    known = {name: kind for name, kind in attacks().items() if Classifies in kind.victims}
    if method not in known:
        raise ConfigError(f"there is no such attack; there is {', '.join(known)}", field="params/attacks")
    kind = known[method]
    if norm not in kind.norms:
        raise ConfigError(f"{method} knows the norm {' or '.join(kind.norms)} only", field="params/attacks")
    if "norm" in kind.Config.model_fields:
        config["norm"] = norm
    config.pop("eps", None)
    return kind(**config)


def named(made: list[Attack]) -> dict[str, Attack]:
    """By name; a second one of a name is numbered."""
    found: dict[str, Attack] = {}
    for attack in made:
        same = sum(other.name == attack.name for other in found.values())
        found[f"{attack.name} {same + 1}" if same else attack.name] = attack
    return found
