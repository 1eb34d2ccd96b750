"""Training as a generator of steps: the caller's `for` body reports, checkpoints and stops; leaving the loop cancels.

Everything random follows from (seed, step) and everything scheduled from the count of images, so a checkpoint is the
networks, the optimiser moments and two integers, and a resumed run is bit-identical on the CPU.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Notice
from models.family import Family
from models.seeds import derive, seed_globally
from models.training.checkpoint import State, moments, networks, restore_moments, restore_networks
from models.training.monitor import TrainingMonitor
from models.types import DataError, Diverged, Metrics

PROBE = 64
WINDOW, BEST = "window/", "best/"


@dataclass(frozen=True)
class Step:
    """One update done: how far the run is, its scalars, still on the device, and what the doctor has to say."""

    images: int
    total: int
    metrics: Metrics
    notices: tuple[Notice, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    """What `Family.evaluate_midway` found here."""


class Training:
    """One run of one family over one dataset, whose Columns are on the host or on the family's device."""

    def __init__(self, family: Family, train: Columns, validation: Columns, seed: int = 0):
        if len(train) < 2 or len(validation) < 1:
            raise DataError(
                "training needs at least 2 training images and 1 validation image",
                field="dataset",
                remedy="import more images; of images that are the same one alone counts",
            )
        self.family, self.train, self.validation, self.seed = family, train, validation, seed
        self.device = family.device
        family.before_training(train)
        self.batch_size = family.config.batch_size
        self.total = family.total
        self.images = self.step = 0
        self.doctor, self.window = TrainingMonitor(self.total, self.batch_size, train, validation), Meter()
        points = family.midway_points()
        self.midway_points = {-(-images // self.batch_size) for images in points}
        self.measured: dict[str, float] = {}
        self.best: dict[str, Tensor] = {}
        """The weights of the least held-out loss so far, where the config says keep best."""
        self.optimisers = family.optimisers()
        self._rates = self._base_rates()

    def run(self) -> Iterator[Step]:
        """Update until the last image. Raises Diverged when a reported loss is not finite."""
        self.family.train()
        while self.images < self.total:
            yield self.advance()

    def advance(self) -> Step:
        """One update."""
        # new layers, dropout and friends draw from the global stream
        seed_globally(derive(self.seed, "step", self.step), self.device)
        self.grow_to(self.images)
        batch = self.train.batch(self.seed, self.images, self.batch_size)
        batch = {name: column.to(self.device) for name, column in batch.items()}
        self._set_rates()
        metrics = self.family.step(batch, self.optimisers, self.context())
        self.images, self.step = self.images + self.batch_size, self.step + 1
        self.window.add(metrics)
        measured = self._appraise() if self.step in self.midway_points else {}
        notices = tuple(self._look()) if self.step in self.doctor.steps else ()
        return Step(self.images, self.total, metrics, notices, measured)

    def context(self, purpose: str = "draws") -> StepContext:
        """The present point; its generator depends on (seed, step, purpose) alone."""
        draws = torch.Generator(self.device).manual_seed(derive(self.seed, purpose, self.step))
        return StepContext(self.images, self.total, self.step, self.seed, draws)

    def grow_to(self, images: int) -> None:
        """Let the family grow; when its parameters changed, new optimisers take the old moments over by name."""
        if type(self.family).grow_to is Family.grow_to:
            return  # it never grows; listing its parameters twice per update would cost more than a small update
        before = self._names()
        self.family.grow_to(images)
        if before != self._names():
            kept = moments(self.optimisers, before)
            self.optimisers = self.family.optimisers()
            restore_moments(self.optimisers, self.family, kept)
            self._rates = self._base_rates()

    def snapshot(self) -> Tensor | None:
        """The family's pictures of its state, from fixed inputs, in eval mode."""
        probe = {name: column.to(self.family.device) for name, column in self.validation.head(PROBE).items()}
        draws = torch.Generator(self.family.device).manual_seed(derive(self.seed, "snapshot"))
        with self._evaluating():
            return self.family.snapshot(probe, StepContext(self.images, self.total, self.step, self.seed, draws))

    def finish(self) -> dict[str, float]:
        """Fit what the family fits after training, and measure it: the metrics of the result.

        Under `keep: best` the weights of the least held-out loss come back first; they were of `best_images` images.
        """
        if self.best:
            restore_networks(self.family, {name.removeprefix(BEST): value for name, value in self.best.items()})
        with self._evaluating():
            self.family.after_training(self.train, self.context("finish"))
            found = self.family.evaluate(self.train, self.validation, self.context("evaluate"))
        return found | ({"best_images": self.doctor.best.images} if self.best else {})

    def state(self) -> State:
        """Everything a resumed run needs. Raises Diverged rather than keep weights that are not finite."""
        tensors = networks(self.family) | moments(self.optimisers, self._names())
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point()):
            raise Diverged("the weights are no longer finite", field="config", remedy="lower learning_rate")
        tensors |= self.best | {WINDOW + name: value for name, value in self.window.sums.items()}
        facts: dict[str, Any] = {"images": self.images, "step": self.step, "seed": self.seed}
        facts |= {"doctor": self.doctor.state(), "window": dict(self.window.counts), "measured": self.measured}
        return State(tensors, facts)

    def restore(self, state: State) -> None:
        """Continue from `state`, in a Training made with the same family, config and data."""
        self.images, self.step = state.facts["images"], state.facts["step"]
        self.grow_to(max(0, self.images - self.batch_size))
        restore_networks(self.family, state.tensors)
        restore_moments(self.optimisers, self.family, state.tensors)
        self.best = {name: value.to(self.device) for name, value in state.tensors.items() if name.startswith(BEST)}
        self.doctor.restore(state.facts.get("doctor", {}))
        self.measured = dict(state.facts.get("measured", {}))
        self.window.counts = dict(state.facts.get("window", {}))
        self.window.sums = {name: state.tensors[WINDOW + name].to(self.device).clone() for name in self.window.counts}

    def _look(self) -> list[Notice]:
        with self._evaluating():
            notices = self.doctor.look(self.family, self.window.take() | self.measured, self.context("look"))
        if getattr(self.family.config, "keep", "last") == "best" and self.doctor.best is self.doctor.findings[-1]:
            self.best = {BEST + name: value for name, value in networks(self.family).items()}
        return notices

    def _appraise(self) -> dict[str, float]:
        with self._evaluating():
            found = self.family.evaluate_midway(self.train, self.validation, self.context("appraise"))
        self.measured = {name: value for name, value in found.items() if math.isfinite(value)}
        return self.measured

    def _names(self) -> dict[torch.nn.Parameter, str]:
        return {parameter: name for name, parameter in self.family.named_parameters()}

    def _base_rates(self) -> list[tuple[dict, float]]:
        return [(group, group["lr"]) for optimiser in self.optimisers.values() for group in optimiser.param_groups]

    def _set_rates(self) -> None:
        factor = self.family.schedule(min(1.0, self.images / self.total))
        for group, rate in self._rates:
            group["lr"] = rate * factor

    def _evaluating(self):
        return _Evaluating(self.family)


class _Evaluating:
    """Eval mode without gradients for a while, then training mode again."""

    def __init__(self, family: Family):
        self.family, self.no_grad = family, torch.no_grad()

    def __enter__(self) -> None:
        self.family.eval()
        self.no_grad.__enter__()

    def __exit__(self, *reason: object) -> None:
        self.no_grad.__exit__(*reason)
        self.family.train()


class Meter:
    """Running means of a run's scalars on the device; `take` reads them once, so a step never waits for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Means since the last take, which they leave as it is. Reads the device."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def take(self) -> dict[str, float]:
        """Means since the last take, as floats. Raises Diverged when one is not finite."""
        means = self.means()
        self.sums, self.counts = {}, {}
        bad = [name for name, mean in means.items() if mean != mean or abs(mean) == float("inf")]
        if bad:
            raise Diverged(f"{bad[0]} is no longer finite", field="config", remedy="lower learning_rate")
        return means
