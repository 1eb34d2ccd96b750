"""The training monitor: inspections at fixed points of a training, and alarms with cause and remedy.

An inspection depends on the weights, the seed and the data only, so a resumed training raises the same alarms at the
same images. Alarms that any training can raise are here; `Family.diagnose` adds those of the family.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection, Notice, Reading
from models.family import Family
from models.types import Batch

MAX_PROBE = 128  # validation rows in the probe
COST_SHARE = 0.015  # of the cost of the training; a row without gradients costs about a third of one with
INSPECTIONS = 8, 40  # the probe is made smaller until the first number is affordable; never more than the second
MIN_INSPECTIONS = 4
MIN_RANGE = 0.2  # of pixel values: images that use less of [0, 1] were probably scaled for another range
RISEN, FALLEN = 1.15, 0.95
"""Overfitting: validation loss over this multiple of its best, training loss under this multiple of its value then."""


def inspection_plan(total: int, batch: int, rows: int) -> tuple[set[int], int]:
    """The updates after which to inspect (the first and the last among them), and the rows of the probe."""
    probe = max(1, min(MAX_PROBE, rows, max(8, int(3 * COST_SHARE * total / INSPECTIONS[0]))))
    count = min(INSPECTIONS[1], max(MIN_INSPECTIONS, int(3 * COST_SHARE * total / probe)))
    steps = -(-total // batch)
    return {1, *(-(-steps * number // count) for number in range(1, count + 1))}, probe


class TrainingMonitor:
    """Readings and alarms of one training. `state` is JSON and part of the checkpoint."""

    def __init__(self, total: int, batch: int, train: Columns, validation: Columns):
        self.steps, rows = inspection_plan(total, batch, len(validation))
        self.train, self.validation, self.rows = train, validation, rows
        self.readings: list[Reading] = []
        self.alarms: list[Alarm] = []
        self._probe: Batch | None = None

    @property
    def standing(self) -> list[Alarm]:
        """Alarms that have not cleared."""
        return [alarm for alarm in self.alarms if alarm.cleared is None]

    def probe(self, device: torch.device) -> Batch:
        """The validation rows of every inspection, evenly spaced."""
        if self._probe is None:
            rows = self.validation.spaced(self.rows)
            self._probe = {name: column.to(device) for name, column in rows.items()}
        return self._probe

    def inspect(self, family: Family, metrics: Mapping[str, float], context: StepContext) -> list[Notice]:
        """Inspect `family`, which is in eval mode and without gradients. Returns the changes of alarms."""
        probe = self.probe(family.device)
        loss = family.validation_loss(probe, context)
        finite = loss is not None and bool(torch.isfinite(loss))
        now = Reading(context.images, dict(metrics), float(loss) if finite else None)
        inspection = Inspection(now, tuple(self.readings), probe, context, self.train, self.validation)
        raised = {
            alarm.name: alarm for alarm in (*general(inspection, keeps_best(family)), *family.diagnose(inspection))
        }
        self.readings.append(now)
        cleared = [alarm for alarm in self.standing if alarm.name not in raised]
        return [
            *(self._change("alarm_cleared", alarm, now.images, cleared=now.images) for alarm in cleared),
            *(notice for alarm in raised.values() if (notice := self._raise(alarm, family, inspection))),
        ]

    def _raise(self, alarm: Alarm, family: Family, inspection: Inspection) -> Notice | None:
        """Record an alarm unless it stands already, and treat it if the config says `auto_remedy`."""
        treated = family.auto_remedy(alarm, inspection) if getattr(family.config, "auto_remedy", False) else None
        images, same = inspection.now.images, [standing for standing in self.standing if standing.name == alarm.name]
        if same:
            return self._change("alarm_treated", same[0], images, treated=treated) if treated else None
        evidence = {name: float(value) for name, value in alarm.evidence.items() if math.isfinite(value)}
        self.alarms.append(replace(alarm, evidence=evidence, images=images, treated=treated))
        return Notice("alarm", self.alarms[-1], images)

    def _change(self, kind: str, alarm: Alarm, images: int, **values: Any) -> Notice:
        changed = self.alarms[self.alarms.index(alarm)] = replace(alarm, **values)
        return Notice(kind, changed, images)

    @property
    def best(self) -> Reading | None:
        """The reading with the lowest validation loss, the latest of equals; None if the family has none."""
        measured = [reading for reading in reversed(self.readings) if reading.validation_loss is not None]
        return min(measured, key=lambda reading: reading.validation_loss, default=None)

    def worsened(self, margin: float) -> bool:
        """Whether the last validation loss exceeds the best by `margin`, in the unit of the alarm of overfitting."""
        best, last = self.best, self.readings[-1] if self.readings else None
        if best is None or last is best or last.validation_loss is None:
            return False
        first = next(reading for reading in self.readings if reading.validation_loss is not None)
        return last.validation_loss - best.validation_loss > margin * scale_of(first, best)

    def state(self) -> dict[str, Any]:
        return {"findings": [asdict(item) for item in self.readings], "alarms": [asdict(item) for item in self.alarms]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.readings = [
            Reading(saved["images"], saved["metrics"], saved.get("validation_loss", saved.get("held_out")))
            for saved in state.get("findings", [])  # releases up to 0.1 wrote the loss as held_out
        ]
        self.alarms = [Alarm(**saved) for saved in state.get("alarms", [])]


def keeps_best(family: Family) -> bool:
    """Whether the weights with the lowest validation loss are published."""
    return getattr(family.config, "keep", "last") == "best"


def general(inspection: Inspection, keeps_best: bool = False) -> Iterator[Alarm]:
    """Alarms that any training can raise."""
    yield from data_alarms(inspection.probe)
    yield from overfitting(inspection, keeps_best)


def data_alarms(probe: Batch) -> Iterator[Alarm]:
    """Images that are all the same, or whose values fill only a small part of [0, 1]."""
    for name in ("images", "input", "target", "a", "b"):
        if name not in probe:
            continue
        images = probe[name]
        low, high = float(images.amin()), float(images.amax())
        difference = float((images - images[:1]).abs().amax())
        evidence = {"lowest": low, "highest": high, "difference": difference}
        if len(images) > 1 and difference == 0:
            yield Alarm(
                "constant-images",
                f"All {len(images)} inspected validation images are identical, so there is nothing to learn.",
                "Check the dataset; the import may have lost the content of the images.",
                evidence,
            )
        elif high - low < MIN_RANGE:
            yield Alarm(
                "unscaled-input",
                f"The pixels lie between {low:.3g} and {high:.3g}, a small part of the range from 0 to 1.",
                "Scale the images to use it (8-bit images: 0 to 255) and import them again.",
                evidence,
            )


def scale_of(first: Reading, best: Reading) -> float:
    """The unit in which a rise of the validation loss is measured: its best value, or a quarter of the descent to it.

    The loss may be negative (a density), and a small cross-entropy of a few rows varies by half of its value in a
    healthy training.
    """
    return max(abs(best.validation_loss), 0.25 * abs(first.validation_loss - best.validation_loss), 1e-12)


def overfitting(inspection: Inspection, keeps_best: bool = False) -> Iterator[Alarm]:
    """The validation loss is well above its best, at this inspection and the last, while the training loss fell."""
    past = [r for r in inspection.before if r.validation_loss is not None and "loss" in r.metrics]
    if len(past) < 3 or inspection.now.validation_loss is None or "loss" not in inspection.metrics:
        return
    best = min(past, key=lambda reading: reading.validation_loss)
    scale = scale_of(past[0], best)
    last_two = (past[-1], inspection.now)
    worse = [(reading.validation_loss - best.validation_loss) / scale > RISEN - 1 for reading in last_two]
    fell = inspection.metrics["loss"] < best.metrics["loss"] - (1 - FALLEN) * abs(best.metrics["loss"])
    if all(worse) and fell:
        yield Alarm(
            "overfitting",
            f"The validation loss was lowest ({best.validation_loss:.4g}) after {best.images} images and is now "
            f"{inspection.now.validation_loss:.4g}, while the training loss kept falling.",
            f"The weights at {best.images} images are kept. Train for about that many images, use more data or a "
            "smaller model."
            if keeps_best
            else f"Train for about {best.images} images, use more data or a smaller model, or set keep to best.",
            {
                "held_out": inspection.now.validation_loss,
                "best_held_out": best.validation_loss,
                "best_images": best.images,
                "loss": inspection.metrics["loss"],
                "loss_at_best": best.metrics["loss"],
            },
        )
