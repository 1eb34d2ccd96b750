"""What attacks do to a model's masks or detections over a dataset: measures before and after, beside two controls.

The controls are random signs of the same size and the attack's own perturbation with its pixels shuffled (Xie et al.
2017): an attack that is not far worse than both has found nothing. Every image is measured as the 8-bit image it is.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core.access import WhiteBox
from models.attacks.core.base import Eps
from models.attacks.core.logits import Clean
from models.attacks.core.result import AttackResult
from models.attacks.core.sweep import noise, shuffled
from models.attacks.criteria.classification import Criterion
from models.family import Family
from models.operations.core.victims import Victim, victim_of
from models.registry import attacks
from models.reports.core.base import Curve, Findings, Params, Progress, Report, Run, Subject
from models.seeds import derive
from models.types import DataError, DataSpec

BATCH = 16
SHOWN = 6
STEPS = {"dag": 100, "apgd": 50, "": 20}
"""Of attacks that make several, by name; "" is all others."""
LEVELS = 256
VARIANTS = ("attacked", "random_signs", "shuffled")
TELLING = 0.5
"""A control that costs more than this share of what the attack costs is remarked on."""


def against(capability: type) -> tuple[str, ...]:
    """The attacks on models with the capability that see gradients."""
    found = attacks().items()
    return tuple(name for name, kind in found if capability in kind.victims and kind.access == "gradients")


class DenseParams(Params):
    """Which attacks, how large, on how many images."""

    eps: list[Eps] = Field([4 / 255, 8 / 255, 16 / 255], min_length=1, max_length=16, description="Sizes (linf).")
    steps: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Gradient steps of each attack that makes several. Empty: 20; 50 of APGD, which needs some to find"
        " its length; and 100 of DAG, whose steps are full (2 eps) in one pixel alone.",
    )
    images: int = Field(64, ge=1, le=10_000, description="At most so many images, from all over the validation split.")


class DenseAttack(Report):
    """Subclasses say what is measured. What is kept for a later attempt are the tallies of batches that are done."""

    measure: ClassVar[str]
    """The name, in the summary of a tally, of the measure that is drawn."""
    price: ClassVar[dict[str, str]] = {
        "forwards": "images * (1 + count_eps * (run_forwards + 2 * count_attacks)) + min(images, 6) * run_forwards",
        "backwards": "(images * count_eps + min(images, 6)) * run_backwards",
    }
    settings: ClassVar[dict[str, dict[str, Any]]] = {name: {"steps": steps} for name, steps in STEPS.items()}
    passes_on = ("steps",)

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        super().check(model, data)
        if len(data.classes or ()) != len(model.data.classes):
            raise DataError(
                f"the dataset has {len(data.classes or ())} classes, the model {len(model.data.classes)}", "dataset"
            )

    @abstractmethod
    def tally(self, model: Family, kept: Any = None) -> Any:
        """An empty tally, or the one that gave `kept`: it has add(seen, truth), state() and summary()."""

    @abstractmethod
    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """What is true of each image, in the form the tally takes."""

    @abstractmethod
    def criterion(self, truth: Tensor, params: DenseParams) -> Criterion:
        """When an image counts as adversarial."""

    @abstractmethod
    def drawn(self, model: Family, images: Tensor, seen: Tensor) -> Tensor:
        """Images with what the model sees in them, (n, 3, h, w)."""

    def run(self, subject: Subject, params: DenseParams, kept: Any = None) -> Run:
        model, victim = subject.model, victim_of(subject.model)
        access = WhiteBox(model, victim.outputs, shape=model.data.shape)
        count = min(params.images, len(subject.validation))
        cells = [(name, eps) for name in params.attacks for eps in sorted(params.eps)]
        state, done = kept or {}, 0
        total = count * (1 + len(cells))
        for cell in [("clean", 0.0), *cells]:
            key = f"{cell[0]}:{cell[1]:.9g}"
            mine = state.setdefault(key, {"images": 0, "fooled": 0, "queries": 0, "tallies": {}})
            tallies = {name: self.tally(model, mine["tallies"].get(name)) for name in VARIANTS}
            for start in range(0, count, BATCH):
                stop = min(start + BATCH, count)
                done += stop - start
                if mine["images"] >= stop:
                    continue
                batch = subject.validation.rows(everywhere(subject, count)[start:stop])
                batch = {name: column.to(model.device) for name, column in batch.items()}
                self._cell(victim, model, access, batch, cell, start, subject.seed, params, mine, tallies)
                mine["images"] = stop
                mine["tallies"] = {name: tally.state() for name, tally in tallies.items()}
                yield Progress(done, total, state)
        return self._findings(subject, params, access, cells, state, count)

    def _cell(
        self, victim: Victim, model: Family, access: WhiteBox, batch: dict[str, Tensor], cell: tuple[str, float],
        start: int, seed: int, params: DenseParams, mine: dict[str, Any], tallies: dict[str, Any],
    ) -> None:  # fmt: skip
        """One batch under one attack, added to the tallies."""
        images, truth = batch["images"], self.truth(batch)
        if cell[0] == "clean":
            tallies["attacked"].add(victim.seen(victim.outputs(model, images)), truth)
            return
        found, threat, seeds = self._attack(access, images, truth, cell, start, seed, params)
        mine["fooled"] += int((found.success | found.initially_wrong).sum())
        mine["queries"] += int(found.queries.sum())
        tallies["attacked"].add(victim.seen(found.logits), truth)
        for name, control in (
            ("random_signs", noise(images, threat, seeds)),
            ("shuffled", shuffled(images, found.images, threat, seeds)),
        ):
            tallies[name].add(victim.seen(victim.outputs(model, control)), truth)

    def _attack(self, access, images, truth, cell, start, seed, params) -> tuple[AttackResult, Any, Tensor]:
        kind = attacks()[cell[0]]
        own: dict[str, Any] = {"steps": params.steps or STEPS.get(cell[0], STEPS[""])}
        own["gamma"] = max(0.5 / 255, 2 * cell[1])  # the paper's step leaves most pixels near where they were
        attack = kind(eps=cell[1], **{name: own[name] for name in own if name in kind.Config.model_fields})
        seeds = torch.tensor([derive(seed, "dense", cell[0], start + row) for row in range(len(images))])
        threat = replace(attack.threat(LEVELS), eps=cell[1])
        seeds = seeds.to(images.device)
        with torch.no_grad():
            clean = Clean.of(access, images)
        criterion = self.criterion(truth, params).given_clean_outputs(clean.logits)
        return attack.run(access, images, criterion, threat, seeds, clean=clean), threat, seeds

    def _findings(self, subject, params, access, cells, state, count) -> Findings:
        model = subject.model
        summaries = {
            key: {name: self.tally(model, kept).summary() for name, kept in mine["tallies"].items()}
            for key, mine in state.items()
        }
        clean = summaries["clean:0"]["attacked"]
        rows = []
        for name, eps in cells:
            key = f"{name}:{eps:.9g}"
            mine, found = state[key], summaries[key]
            rows.append(
                {"attack": name, "eps": eps, "eps_255": round(eps * 255, 3), **found["attacked"]}
                | {f"{self.measure}_{control}": found[control][self.measure] for control in VARIANTS[1:]}
                | {"fooled": mine["fooled"] / count, "queries": mine["queries"] / count}
            )
        worst = min(rows, key=lambda row: row[self.measure])
        facts = {"images": count, **{f"clean_{name}": value for name, value in clean.items()}}
        facts |= {
            "worst_attack": worst["attack"],
            "worst_eps": worst["eps"],
            f"worst_{self.measure}": worst[self.measure],
        }
        pictures = self._pictures(subject, params, access, min(SHOWN, count))
        notes = remarks(rows, clean[self.measure], self.measure)
        return Findings(facts, {"attacks": rows}, [self._curve(rows, clean, params)], pictures, notes)

    def _curve(self, rows: list[dict], clean: dict[str, float], params: DenseParams) -> Curve:
        """The measure by eps, from the clean images on; the controls are those of the first attack."""
        by_attack = {name: [row for row in rows if row["attack"] == name] for name in params.attacks}
        start, first = clean[self.measure], by_attack[params.attacks[0]]
        series = {name: [start, *(row[self.measure] for row in mine)] for name, mine in by_attack.items()}
        for control in VARIANTS[1:]:
            title = f"{control.replace('_', ' ')} ({params.attacks[0]})"
            series[title] = [start, *(row[f"{self.measure}_{control}"] for row in first)]
        return Curve(
            f"{self.measure} under attack", "eps (of 255)", self.measure, [0, *(r["eps_255"] for r in first)], series
        )

    def _pictures(self, subject, params, access, count) -> dict[str, Tensor]:
        """For each attack at the largest eps: image, answer, adversarial image, answer, perturbation, in one row."""
        model, victim = subject.model, victim_of(subject.model)
        batch = subject.validation.rows(everywhere(subject, count))
        batch = {name: column.to(model.device) for name, column in batch.items()}
        images, truth, eps = batch["images"], self.truth(batch), max(params.eps)
        sheets = {}
        for name in params.attacks:
            found, _, _ = self._attack(access, images, truth, (name, eps), 0, subject.seed, params)
            change = (0.5 + (found.images - images) / (2 * max(eps, 1e-9))).clamp(0, 1)
            parts = [images, self.drawn(model, images, victim.seen(found.clean_logits)), found.images]
            parts += [self.drawn(model, found.images, victim.seen(found.logits)), change]
            sheets[name] = torch.cat([part.expand(-1, 3, -1, -1) for part in parts], 3).cpu()
        return sheets


def everywhere(subject: Subject, count: int) -> Tensor:
    """(count,) rows from all over the validation split, which may be sorted by what the images show."""
    return torch.linspace(0, len(subject.validation) - 1, count).long()


def remarks(rows: list[dict], clean: float, measure: str) -> list[str]:
    """What a reader should not overlook."""
    notes = []
    for row in rows:
        cost = clean - row[measure]
        for control in VARIANTS[1:]:
            theirs = clean - row[f"{measure}_{control}"]
            if theirs > max(TELLING * cost, 0.01):
                notes.append(
                    f"{row['attack']} at {row['eps_255']:g}/255 costs {cost:.3f} of {measure}, and {theirs:.3f} are"
                    f" lost to {control.replace('_', ' ')} of the same size: this is noise more than an attack."
                )
    return notes
