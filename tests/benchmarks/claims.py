"""What a row of the quality table is made of: a claim with its target, and the subject it is measured on."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from app.core.store.keys import LOCAL
from models.data import Columns
from models.family import Family
from models.registry import families
from models.training.loop import Training
from models.types import DataSpec
from workers import devices
from workers.store.training_data import Source, open_source

TRIAL = 12
"""Updates that time a training before its length is chosen; the first two are left out."""
SHARE = 0.85
"""Part of the budget that updates may take: what is fitted and measured afterwards needs the rest."""


@dataclass(frozen=True)
class Found:
    """One measurement: the value, the trivial baselines beside it, and what else a reader must know.

    `short` says that the budget ended the measurement before its full length, so a target missed is not refuted.
    """

    value: float
    baselines: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    short: bool = False


@dataclass(frozen=True)
class Target:
    """What the value is to be: a sentence, and the predicate that decides. It may look at the baselines."""

    text: str
    holds: Callable[[Found], bool]


def at_most(limit: float) -> Target:
    return Target(f"<= {limit:g}", lambda found: found.value <= limit)


def at_least(limit: float) -> Target:
    return Target(f">= {limit:g}", lambda found: found.value >= limit)


def at_most_times(factor: float, baseline: str) -> Target:
    return Target(f"<= {factor:g} x {baseline}", lambda found: found.value <= factor * found.baselines[baseline])


def above(baseline: str, by: float = 0.0) -> Target:
    """At least the baseline, plus `by` in the unit of the value."""
    text = f">= {baseline}" + (f" + {by:g}" if by else "")
    return Target(text, lambda found: found.value >= found.baselines[baseline] + by)


@dataclass(frozen=True)
class Row:
    """A claim about quality that a command can measure. Rows are the module constants of tests/benchmarks/rows."""

    name: str
    """Words joined by hyphens, unique among all rows."""
    claim: str
    unit: str
    target: Target
    measure: Callable[["Subject"], Found]
    dataset: str = "mnist5k"
    """Measured on this one unless another is named."""
    suits: Callable[[DataSpec], bool] = lambda spec: spec.layout in ("plain", "labelled", "attributes")
    """Whether the claim makes sense on a dataset with these facts."""


def labelled(spec: DataSpec) -> bool:
    """For `suits`: images with classes."""
    return bool(spec.classes) and "labels" in spec.columns.get("train", {})


@dataclass
class Subject:
    """The dataset a row is measured on, and how long it may take."""

    name: str
    source: Source
    seed: int = 0
    minutes: float = 2.0
    """CPU minutes the row may take, about."""
    images: int | None = None
    """At most so many images in a training, whatever the minutes allow."""
    started: float = field(default_factory=time.process_time)

    @property
    def spec(self) -> DataSpec:
        return DataSpec.from_facts(self.source.data.facts)

    @property
    def train(self) -> Columns:
        return Columns(self.source.data.train)

    @property
    def validation(self) -> Columns:
        return Columns(self.source.data.validation)

    @property
    def left(self) -> float:
        """CPU seconds of the budget that are left."""
        return self.minutes * 60 - (time.process_time() - self.started)

    def other(self, dataset: str) -> "Subject":
        """The same measurement's view of another dataset, for rows that need two."""
        return Subject(dataset, open_source(None, LOCAL, dataset), self.seed, self.minutes, self.images, self.started)

    def trained(self, family: str, config: dict[str, Any], share: float = 1.0, **given: Any) -> "Trained":
        """A family trained on the subject for as long as its config asks, or as `share` of the budget left allows.

        The whole schedule is run over the shorter length, so that what is measured is a finished training.
        `given` may have another `train` or `validation` (Columns), and the `spec` that describes them.
        """
        train, validation = given.get("train", self.train), given.get("validation", self.validation)
        budget = self.left * share * SHARE

        def built(settings: dict[str, Any]) -> Training:
            torch.manual_seed(self.seed)
            model = families()[family].create(settings, given.get("spec", self.spec)).to(devices.device())
            return Training(model, train, validation, self.seed)

        trial = built(config)
        wanted, size = trial.total, trial.batch_size
        affordable = int(budget / seconds_per_update(trial)) * size
        length = max(size, min(wanted, affordable, self.images or wanted))
        training = built({name: value for name, value in config.items() if name != "epochs"} | {"images": length})
        started = time.process_time()
        for _ in training.run():
            pass
        seconds = time.process_time() - started
        return Trained(training, training.finish(), wanted, seconds)


@dataclass(frozen=True)
class Trained:
    """A finished training of a row."""

    training: Training
    measured: dict[str, float]
    """What the family says of itself after training: `Family.evaluate`."""
    wanted: int
    """Images of the full length."""
    seconds: float

    @property
    def model(self) -> Family:
        """In eval mode, without gradients."""
        return self.training.family.eval().requires_grad_(False)

    @property
    def short(self) -> bool:
        return self.training.images < self.wanted

    @property
    def note(self) -> str:
        epochs = self.training.images / max(1, len(self.training.train))
        cut = f", {self.training.images / self.wanted:.0%} of the full length" if self.short else ""
        return f"{epochs:.3g} epochs{cut}, {self.seconds:.0f} CPU s"


def seconds_per_update(training: Training) -> float:
    for _ in range(2):
        training.advance()
    started = time.process_time()
    for _ in range(TRIAL - 2):
        training.advance()
    return (time.process_time() - started) / (TRIAL - 2)


def pixels(columns: Columns, most: int = 10_000) -> torch.Tensor:
    """(n, D) in [0, 1]: the first rows of the images."""
    return torch.from_numpy(columns.columns["images"][:most].copy()).flatten(1).float() / 255
