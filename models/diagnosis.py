"""What the training monitor and the families exchange: readings, inspections and alarms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.context import StepContext
from models.data import Columns
from models.types import Batch


@dataclass(frozen=True)
class Alarm:
    """One thing wrong with a training: `cause` and `remedy` are sentences, `evidence` the numbers behind the cause.

    `name` is stable. An alarm that stands is not raised again; one that has cleared can return.
    """

    name: str
    cause: str
    remedy: str
    evidence: Mapping[str, float] = field(default_factory=dict)
    images: int = 0
    cleared: int | None = None
    """Images shown when it had gone again."""
    treated: str | None = None
    """What the family did about it by itself, under `auto_remedy`."""

    @property
    def sentence(self) -> str:
        return f"{self.cause} {self.remedy}"


@dataclass(frozen=True)
class Notice:
    """A change to tell of: an alarm that came (`alarm`), was treated again, or cleared, after so many `images`."""

    kind: Literal["alarm", "alarm_treated", "alarm_cleared"]
    alarm: Alarm
    images: int


@dataclass(frozen=True)
class Reading:
    """What one look found: means of the step's scalars since the look before, and the loss on the probe."""

    images: int
    metrics: Mapping[str, float]
    validation_loss: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What a family may judge by: the present finding, those before it (oldest first), and a probe.

    `probe` holds the same few validation rows at every look. The family is in eval mode and without gradients;
    `context.generator` is the look's own. What `examine` computes beyond the probe, on `train` and `validation`, is the
    family's to bound.
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
