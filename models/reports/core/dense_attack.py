"""Attacks on segmenters and detectors over a dataset: measures on clean and attacked images, and two controls.

The controls are random signs of the same eps, and the attack's own perturbation with its pixels shuffled (Xie et al.
2017). An attack that lowers the measure hardly more than a control is no better than noise. All images are 8-bit.
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
from models.capabilities import finite_rows
from models.family import Family
from models.operations.core.victims import Victim, victim_of
from models.registry import attacks
from models.reports.core.base import Curve, Params, Progress, Report, ReportResult, Run, Subject
from models.seeds import derive
from models.types import DataError, DataSpec

BATCH = 16
PICTURES = 6
STEPS = {"dag": 100, "apgd": 50, "": 20}
"""Default number of steps by attack; "" is for all others."""
LEVELS = 256
VARIANTS = ("attacked", "random_signs", "shuffled")
STRONG_CONTROL = 0.5
"""A control that lowers the measure by more than this fraction of what the attack does gets a note."""


def against(capability: type) -> tuple[str, ...]:
    """Names of the white-box attacks on models with the capability."""
    return tuple(name for name, kind in attacks().items() if capability in kind.victims and kind.access == "gradients")


class DenseParams(Params):
    """The attacks, their eps, and the images."""

    eps: list[Eps] = Field([4 / 255, 8 / 255, 16 / 255], min_length=1, max_length=16, description="Values of eps.")
    steps: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Gradient steps of iterative attacks. Default: 20; 50 for APGD, which adapts its step size on the "
        "way; 100 for DAG, which changes few pixels in a step.",
    )
    images: int = Field(64, ge=1, le=10_000, description="Maximum number of validation images, evenly spaced.")


class DenseAttack(Report):
    """Subclasses define the measure. The progress state holds the tallies of the finished batches."""

    measure: ClassVar[str]
    """Key, in the summary of a tally, of the measure that is plotted and compared."""
    price: ClassVar[dict[str, str]] = {
        "forwards": "images * (1 + count_eps * (run_forwards + 2 * count_attacks)) + min(images, 6) * run_forwards",
        "backwards": "(images * count_eps + min(images, 6)) * run_backwards",
    }
    settings: ClassVar[dict[str, dict[str, Any]]] = {name: {"steps": steps} for name, steps in STEPS.items()}
    forwards_params = ("steps",)

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        super().check(model, data)
        if len(data.classes or ()) != len(model.data.classes):
            raise DataError(
                f"the dataset has {len(data.classes or ())} classes, the model {len(model.data.classes)}",
                "dataset",
                "use a dataset with the classes of the model",
            )

    @abstractmethod
    def tally(self, model: Family, state: Any = None) -> Any:
        """An empty tally, or the one with this state(). It has add(predictions, truth), state() and summary()."""

    @abstractmethod
    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """The ground truth of each image, as the tally takes it."""

    @abstractmethod
    def criterion(self, truth: Tensor, params: DenseParams) -> Criterion:
        """When an image counts as adversarial."""

    @abstractmethod
    def draw_predictions(self, model: Family, images: Tensor, predictions: Tensor) -> Tensor:
        """(n, 3, h, w): the images with the model's predictions drawn on them."""

    def run(self, subject: Subject, params: DenseParams, progress_state: Any = None) -> Run:
        model, victim = subject.model, victim_of(subject.model)
        access = WhiteBox(model, victim.outputs, shape=model.data.shape)
        count = min(params.images, len(subject.validation))
        cells = [(name, eps) for name in params.attacks for eps in sorted(params.eps)]
        state, images_done = progress_state or {}, 0
        total = count * (1 + len(cells))
        for cell in [("clean", 0.0), *cells]:
            key = f"{cell[0]}:{cell[1]:.9g}"
            cell_state = state.setdefault(key, {"images": 0, "fooled": 0, "queries": 0, "tallies": {}})
            tallies = {name: self.tally(model, cell_state["tallies"].get(name)) for name in VARIANTS}
            for start in range(0, count, BATCH):
                stop = min(start + BATCH, count)
                images_done += stop - start
                if cell_state["images"] >= stop:
                    continue
                batch = subject.validation.rows(everywhere(subject, count)[start:stop])
                batch = {name: column.to(model.device) for name, column in batch.items()}
                self._cell(victim, model, access, batch, cell, start, subject.seed, params, cell_state, tallies)
                cell_state["images"] = stop
                cell_state["tallies"] = {name: tally.state() for name, tally in tallies.items()}
                yield Progress(images_done, total, state)
        return self._result(subject, params, access, cells, state, count)

    def _cell(
        self, victim: Victim, model: Family, access: WhiteBox, batch: dict[str, Tensor], cell: tuple[str, float],
        start: int, seed: int, params: DenseParams, cell_state: dict[str, Any], tallies: dict[str, Any],
    ) -> None:  # fmt: skip
        """One batch under one attack, added to the tallies."""
        images, truth = batch["images"], self.truth(batch)
        if cell[0] == "clean":
            add_finite(tallies["attacked"], victim, victim.outputs(model, images), truth)
            return
        result, threat, seeds = self._attack(access, images, truth, cell, start, seed, params)
        cell_state["fooled"] += int((result.success | result.initially_wrong).sum())
        cell_state["queries"] += int(result.queries.sum())
        add_finite(tallies["attacked"], victim, result.logits, truth)
        for name, control in (
            ("random_signs", noise(images, threat, seeds)),
            ("shuffled", shuffled(images, result.images, threat, seeds)),
        ):
            add_finite(tallies[name], victim, victim.outputs(model, control), truth)

    def _attack(self, access, images, truth, cell, start, seed, params) -> tuple[AttackResult, Any, Tensor]:
        kind = attacks()[cell[0]]
        """The result of the attack `cell` (name, eps), its threat model, and the seeds of the images."""
        settings: dict[str, Any] = {"steps": params.steps or STEPS.get(cell[0], STEPS[""])}
        settings["gamma"] = max(0.5 / 255, 2 * cell[1])  # with the paper's gamma (DAG) most pixels hardly change
        attack = kind(eps=cell[1], **{name: settings[name] for name in settings if name in kind.Config.model_fields})
        seeds = torch.tensor([derive(seed, "dense", cell[0], start + row) for row in range(len(images))])
        threat = replace(attack.threat(LEVELS), eps=cell[1])
        seeds = seeds.to(images.device)
        with torch.no_grad():
            clean = Clean.of(access, images)
        criterion = self.criterion(truth, params).given_clean_outputs(clean.logits)
        return attack.run(access, images, criterion, threat, seeds, clean=clean), threat, seeds

    def _result(self, subject, params, access, cells, state, count) -> ReportResult:
        model = subject.model
        summaries = {
            key: {name: self.tally(model, tally).summary() for name, tally in cell_state["tallies"].items()}
            for key, cell_state in state.items()
        }
        clean = summaries["clean:0"]["attacked"]
        rows = []
        for name, eps in cells:
            key = f"{name}:{eps:.9g}"
            cell_state, summary = state[key], summaries[key]
            rows.append(
                {"attack": name, "eps": eps, "eps_255": round(eps * 255, 3), **summary["attacked"]}
                | {f"{self.measure}_{control}": summary[control][self.measure] for control in VARIANTS[1:]}
                | {"fooled": cell_state["fooled"] / count, "queries": cell_state["queries"] / count}
            )
        worst = min(rows, key=lambda row: row[self.measure])
        facts = {"images": count, **{f"clean_{name}": value for name, value in clean.items()}}
        facts |= {
            "worst_attack": worst["attack"],
            "worst_eps": worst["eps"],
            f"worst_{self.measure}": worst[self.measure],
        }
        pictures = self._pictures(subject, params, access, min(PICTURES, count))
        notes = remarks(rows, clean[self.measure], self.measure)
        return ReportResult(facts, {"attacks": rows}, [self._curve(rows, clean, params)], pictures, notes)

    def _curve(self, rows: list[dict], clean: dict[str, float], params: DenseParams) -> Curve:
        """The measure over eps, starting with clean images (eps 0); the controls are those of the first attack."""
        by_attack = {name: [row for row in rows if row["attack"] == name] for name in params.attacks}
        start, first = clean[self.measure], by_attack[params.attacks[0]]
        series = {name: [start, *(row[self.measure] for row in its_rows)] for name, its_rows in by_attack.items()}
        for control in VARIANTS[1:]:
            title = f"{control.replace('_', ' ')} ({params.attacks[0]})"
            series[title] = [start, *(row[f"{self.measure}_{control}"] for row in first)]
        return Curve(
            f"{self.measure} under attack", "eps (of 255)", self.measure, [0, *(r["eps_255"] for r in first)], series
        )

    def _pictures(self, subject, params, access, count) -> dict[str, Tensor]:
        """For each attack at the largest eps: image, prediction, adversarial image, prediction, perturbation."""
        model, victim = subject.model, victim_of(subject.model)
        batch = subject.validation.rows(everywhere(subject, count))
        batch = {name: column.to(model.device) for name, column in batch.items()}
        images, truth, eps = batch["images"], self.truth(batch), max(params.eps)
        sheets = {}
        for name in params.attacks:
            result, _, _ = self._attack(access, images, truth, (name, eps), 0, subject.seed, params)
            change = (0.5 + (result.images - images) / (2 * max(eps, 1e-9))).clamp(0, 1)
            parts = [images, self.draw_predictions(model, images, victim.seen(result.clean_logits)), result.images]
            parts += [self.draw_predictions(model, result.images, victim.seen(result.logits)), change]
            sheets[name] = torch.cat([part.expand(-1, 3, -1, -1) for part in parts], 3).cpu()
        return sheets


def add_finite(tally: Any, victim: Victim, outputs: Tensor, truth: Tensor) -> None:
    """Adds the images (N) whose outputs are finite to a tally."""
    finite = finite_rows(outputs)
    if bool(finite.all()):
        tally.add(victim.seen(outputs), truth)
    else:
        tally.add(victim.seen(outputs)[finite], truth[finite])


def everywhere(subject: Subject, count: int) -> Tensor:
    """(count,) evenly spaced rows of the validation split, which may be sorted by content."""
    return torch.linspace(0, len(subject.validation) - 1, count).long()


def remarks(rows: list[dict], clean: float, measure: str) -> list[str]:
    """Notes on attacks that are hardly stronger than a control."""
    notes = []
    for row in rows:
        cost = clean - row[measure]
        for control in VARIANTS[1:]:
            control_cost = clean - row[f"{measure}_{control}"]
            if control_cost > max(STRONG_CONTROL * cost, 0.01):
                notes.append(
                    f"{row['attack']} at {row['eps_255']:g}/255 lowers {measure} by {cost:.3f}, "
                    f"{control.replace('_', ' ')} of that eps by {control_cost:.3f}: hardly stronger than noise."
                )
    return notes
