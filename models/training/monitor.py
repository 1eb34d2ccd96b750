"""The training doctor: a cheap look at a training at points fixed by its length, and alarms with cause and remedy.

A look is a function of the weights, the seed and the data, so a resumed run raises the same alarms at the same images.
Families say what they are wary of in `Family.diagnose`; what can go wrong with any of them is here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection, Notice, Reading
from models.types import Batch

PROBE = 128
SHARE = 0.015
"""Of the cost of a training; showing an image without gradients costs about a third of training on it."""
LOOKS = 8, 40
"""A probe is made smaller until so many looks are affordable, and nobody looks oftener than the second number."""
FEWEST = 4
NARROW = 0.2
"""Pixels that fill less than this part of [0, 1] were probably scaled for another range."""
RISEN, FALLEN = 1.15, 0.95
"""Held-out loss over its best, training loss under what it was then: together, overfitting."""


def look_plan(total: int, batch: int, rows: int) -> tuple[set[int], int]:
    """The updates after which to look (the first and the last among them), and the rows of the probe."""
    probe = max(1, min(PROBE, rows, max(8, int(3 * SHARE * total / LOOKS[0]))))
    looks = min(LOOKS[1], max(FEWEST, int(3 * SHARE * total / probe)))
    steps = -(-total // batch)
    return {1, *(-(-steps * look // looks) for look in range(1, looks + 1))}, probe


class Patient(Protocol):
    """What the doctor asks of the family that it looks at (models/family.py)."""

    config: Any
    device: torch.device

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor | None: ...

    def diagnose(self, look: Inspection) -> Iterable[Alarm]: ...

    def auto_remedy(self, alarm: Alarm, look: Inspection) -> str | None: ...


class TrainingMonitor:
    """Belongs to one training; what it knows is JSON and travels in the checkpoint."""

    def __init__(self, total: int, batch: int, train: Columns, validation: Columns):
        self.steps, rows = look_plan(total, batch, len(validation))
        self.train, self.validation, self.rows = train, validation, rows
        self.findings: list[Reading] = []
        self.alarms: list[Alarm] = []
        self._probe: Batch | None = None

    @property
    def standing(self) -> list[Alarm]:
        """Alarms that have not cleared."""
        return [alarm for alarm in self.alarms if alarm.cleared is None]

    def probe(self, device: torch.device) -> Batch:
        if self._probe is None:
            rows = self.validation.spaced(self.rows)
            self._probe = {name: column.to(device) for name, column in rows.items()}
        return self._probe

    def look(self, family: Patient, metrics: Mapping[str, float], context: StepContext) -> list[Notice]:
        """Examine `family`, which is in eval mode and without gradients. Returns what has changed."""
        probe = self.probe(family.device)
        loss = family.validation_loss(probe, context)
        known = loss is not None and bool(torch.isfinite(loss))
        now = Reading(context.images, dict(metrics), float(loss) if known else None)
        look = Inspection(now, tuple(self.findings), probe, context, self.train, self.validation)
        found = {alarm.name: alarm for alarm in (*general(look, self._keeps(family)), *family.diagnose(look))}
        self.findings.append(now)
        cleared = [alarm for alarm in self.standing if alarm.name not in found]
        return [
            *(self._change("alarm_cleared", alarm, now.images, cleared=now.images) for alarm in cleared),
            *(notice for alarm in found.values() if (notice := self._meet(alarm, family, look))),
        ]

    def _meet(self, alarm: Alarm, family: Patient, look: Inspection) -> Notice | None:
        """An alarm that holds: raised unless it stands already, and treated when the family does that by itself."""
        treated = family.auto_remedy(alarm, look) if getattr(family.config, "auto_remedy", False) else None
        images, stands = look.now.images, [known for known in self.standing if known.name == alarm.name]
        if stands:
            return self._change("alarm_treated", stands[0], images, treated=treated) if treated else None
        evidence = {name: float(value) for name, value in alarm.evidence.items() if math.isfinite(value)}
        self.alarms.append(replace(alarm, evidence=evidence, images=images, treated=treated))
        return Notice("alarm", self.alarms[-1], images)

    def _change(self, kind: str, alarm: Alarm, images: int, **values: Any) -> Notice:
        changed = self.alarms[self.alarms.index(alarm)] = replace(alarm, **values)
        return Notice(kind, changed, images)

    @property
    def best(self) -> Reading | None:
        """The look with the least held-out loss, the latest of equals; None where it is not measured."""
        measured = [found for found in reversed(self.findings) if found.validation_loss is not None]
        return min(measured, key=lambda found: found.validation_loss, default=None)

    @staticmethod
    def _keeps(family: Patient) -> bool:
        return getattr(family.config, "keep", "last") == "best"

    def state(self) -> dict[str, Any]:
        return {name: [asdict(item) for item in getattr(self, name)] for name in ("findings", "alarms")}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.findings = [
            Reading(found["images"], found["metrics"], found.get("validation_loss", found.get("held_out")))
            for found in state.get("findings", [])  # releases up to 0.1 wrote the loss as held_out
        ]
        self.alarms = [Alarm(**found) for found in state.get("alarms", [])]


def general(look: Inspection, keeps: bool = False) -> Iterator[Alarm]:
    """What can be wrong with any training; `keeps` says that the best weights are kept anyway."""
    yield from data_alarms(look.probe)
    yield from overfitting(look, keeps)


def data_alarms(probe: Batch) -> Iterator[Alarm]:
    """Images that are all the same, or whose values fill only a small part of [0, 1]."""
    for name in ("images", "input", "target", "a", "b"):
        if name not in probe:
            continue
        images = probe[name]
        low, high = float(images.amin()), float(images.amax())
        differ = float((images - images[:1]).abs().amax())
        evidence = {"lowest": low, "highest": high, "difference": differ}
        if len(images) > 1 and differ == 0:
            yield Alarm(
                "constant-images",
                f"All {len(images)} validation images looked at are the same: there is nothing to tell apart.",
                "Look at the dataset; the import may have lost what the images show.",
                evidence,
            )
        elif high - low < NARROW:
            yield Alarm(
                "unscaled-input",
                f"The pixels lie between {low:.3g} and {high:.3g}, a small part of the range from 0 to 1.",
                "Scale the images to use it (8-bit images: 0 to 255) and import them again.",
                evidence,
            )


def overfitting(look: Inspection, keeps: bool = False) -> Iterator[Alarm]:
    """The held-out loss has left its best while the training loss went on falling, at this look and the one before."""
    past = [found for found in look.before if found.validation_loss is not None and "loss" in found.metrics]
    if len(past) < 3 or look.now.validation_loss is None or "loss" not in look.metrics:
        return
    best = min(past, key=lambda found: found.validation_loss)
    # a part of the way down from the first look counts too: a density can be negative, and a small cross-entropy of a
    # few rows goes up and down by half of itself in a training that is well
    scale = max(abs(best.validation_loss), 0.25 * abs(past[0].validation_loss - best.validation_loss), 1e-12)
    worse = [(found.validation_loss - best.validation_loss) / scale > RISEN - 1 for found in (past[-1], look.now)]
    fell = look.metrics["loss"] < best.metrics["loss"] - (1 - FALLEN) * abs(best.metrics["loss"])
    if all(worse) and fell:
        yield Alarm(
            "overfitting",
            f"The loss on images held out was lowest ({best.validation_loss:.4g}) after {best.images} images and is "
            f"{look.now.validation_loss:.4g} now, while the training loss went on falling.",
            "The weights of that moment are the ones kept; "
            f"{best.images} images are enough, more data or a smaller model may do better."
            if keeps
            else f"Train for about {best.images} images, use more data or a smaller model, or set keep to best.",
            {
                "held_out": look.now.validation_loss,
                "best_held_out": best.validation_loss,
                "best_images": best.images,
                "loss": look.metrics["loss"],
                "loss_at_best": best.metrics["loss"],
            },
        )
