"""What the training monitor and the families exchange: readings, inspections and alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.context import StepContext
from models.data import Columns
from models.types import Batch


@dataclass(frozen=True)
class Alarm:
    """A problem of a training: `cause` and `remedy` are sentences, `evidence` the numbers that show it.

    `name` is stable. An alarm that stands is not raised again; one that has cleared may be.
    """

    name: str
    cause: str
    remedy: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    cleared: int | None = None
    """Images trained on when it no longer held."""
    treated: str | None = None
    """What the family changed because of it, under `auto_remedy`."""

    @property
    def sentence(self) -> str:
        return f"{self.cause} {self.remedy}"


@dataclass(frozen=True)
class Notice:
    """A change of an alarm after `images` images: it was raised (`alarm`), treated once more, or cleared."""

    kind: Literal["alarm", "alarm_treated", "alarm_cleared"]
    alarm: Alarm
    images: int


@dataclass(frozen=True)
class Reading:
    """Measurements of one inspection: means of the step's scalars since the last one, and the loss on the probe."""

    images: int
    metrics: Mapping[str, float]
    validation_loss: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What `Family.diagnose` may use: the present reading, earlier ones (oldest first), and the probe.

    `probe` holds the same validation rows at every inspection. The family is in eval mode and without gradients;
    `context.generator` is seeded for this inspection. If `diagnose` uses more than the probe, from `train` or
    `validation`, it must bound the cost itself.
    """

    now: Reading
    before: Sequence[Reading]
    probe: Batch
    context: StepContext
    train: Columns
    validation: Columns

    @property
    def metrics(self) -> Mapping[str, float]:
        return self.now.metrics

    @property
    def first(self) -> bool:
        return not self.before
