"""A training as a generator of steps: the caller reports and saves checkpoints between steps, and may stop at any.

Random numbers depend on (seed, step) and schedules on the number of images, so a checkpoint holds the networks, the
optimiser moments and two integers, and a resumed training is bit-identical on the CPU.
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
from models.family import ENGINE, Family
from models.seeds import derive, seed_globally
from models.training.checkpoint import State, moments, networks, on_host, restore_moments, restore_networks
from models.training.monitor import TrainingMonitor, keeps_best
from models.training.precision import deterministic_errors, prepare, release
from models.types import Batch, DataError, Diverged, Metrics

PROBE = 64
WINDOW, BEST = "window/", "best/"


@dataclass(frozen=True)
class Step:
    """One update: the images so far, its scalars (still on the device), and changes of alarms."""

    images: int
    total: int
    metrics: Metrics
    notices: tuple[Notice, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)
    """Metrics of `Family.evaluate_midway`, if this is one of its points."""


class Training:
    """Training of one family on one dataset, whose Columns are on the host or on the family's device."""

    def __init__(self, family: Family, train: Columns, validation: Columns, seed: int = 0):
        if len(train) < 2 or len(validation) < 1:
            raise DataError(
                f"training needs at least 2 training images and 1 validation image; the dataset has {len(train)} and "
                f"{len(validation)}",
                field="dataset",
                remedy="import more images; duplicates count once",
            )
        self.family, self.train, self.validation, self.seed = family, train, validation, seed
        self.device = family.device
        family.before_training(train)
        prepare(family)
        self.batch_size = family.config.batch_size
        self.total = family.total
        self.images = self.step = 0
        self.monitor, self.window = TrainingMonitor(self.total, self.batch_size, train, validation), Meter()
        points = family.midway_points()
        self.midway_points = {-(-images // self.batch_size) for images in points}
        self.measured: dict[str, float] = {}
        self.best: dict[str, Tensor] = {}
        """The weights with the lowest validation loss so far, under `keep: best`."""
        self.optimisers = family.optimisers()
        self._rates = self._base_rates()

    def run(self) -> Iterator[Step]:
        """Update until the last image."""
        self.family.train()
        try:
            while self.images < self.total:
                yield self.advance()
        finally:
            self.train.close()

    def advance(self) -> Step:
        """One update."""
        # new layers and dropout use the global generator
        seed_globally(derive(self.seed, "step", self.step), self.device)
        self.grow_to(self.images)
        batch = {name: column.to(self.device) for name, column in self._batch().items()}
        self._set_rates()
        metrics = self._update(batch, self.context())
        self.images, self.step = self.images + self.batch_size, self.step + 1
        self.window.add(metrics)
        measured = self._evaluate_midway() if self.step in self.midway_points else {}
        notices = tuple(self._inspect()) if self.step in self.monitor.steps else ()
        return Step(self.images, self.total, metrics, notices, measured)

    def _batch(self) -> Batch:
        return self.train.batch(self.seed, self.images, self.batch_size)

    def _update(self, batch: Batch, context: StepContext) -> Metrics:
        with deterministic_errors(self.family.config):
            return self.family.step(batch, self.optimisers, context)

    def context(self, purpose: str = "draws") -> StepContext:
        """The present position; its generator depends on (seed, step, purpose) only."""
        draws = torch.Generator(self.device).manual_seed(derive(self.seed, purpose, self.step))
        return StepContext(self.images, self.total, self.step, self.seed, draws)

    def grow_to(self, images: int) -> None:
        """Grow the family; if that adds parameters, make new optimisers and restore the moments by parameter name."""
        if type(self.family).grow_to is Family.grow_to:
            return  # listing the parameters twice per update would cost more than a small update
        before = self._names()
        self.family.grow_to(images)
        if before != self._names():
            saved = moments(self.optimisers, before)
            self.optimisers = self.family.optimisers()
            restore_moments(self.optimisers, self.family, saved)
            self._rates = self._base_rates()

    def snapshot(self) -> Tensor | None:
        """`Family.snapshot` of fixed inputs, in eval mode."""
        probe = {name: column.to(self.family.device) for name, column in self.validation.head(PROBE).items()}
        draws = torch.Generator(self.family.device).manual_seed(derive(self.seed, "snapshot"))
        with self._evaluating():
            return self.family.snapshot(probe, StepContext(self.images, self.total, self.step, self.seed, draws))

    def complete(self) -> dict[str, float]:
        """Make the model ready to serve; returns the metrics that only its training knows.

        Under `keep: best` the weights with the lowest validation loss, of `best_images` images, are restored first,
        unless the last are worse by less than `keep_margin`.
        """
        restored = bool(self.best) and self.monitor.worsened(getattr(self.family, "keep_margin", 0.0))
        if restored:
            restore_networks(self.family, {name.removeprefix(BEST): value for name, value in self.best.items()})
        release(self.family)
        with self._evaluating():
            self.family.after_training(self.train, self.context("finish"))
            self.family.calibrate(self.train, self.validation, self.context("evaluate"))
        best = {"best_images": self.monitor.best.images if restored else self.images} if self.best else {}
        return self.family.training_metrics() | best

    def finish(self) -> dict[str, float]:
        """`complete`, then measure the model; returns all metrics of the result."""
        known = self.complete()
        with self._evaluating():
            return self.family.evaluate(self.train, self.validation, self.context("evaluate")) | known

    def state(self) -> State:
        """All that a resumed training needs. Raises Diverged if weights are not finite."""
        tensors, finite = on_host(networks(self.family) | moments(self.optimisers, self._names()))
        if not finite:
            raise Diverged("the weights are no longer finite", field="config", remedy="lower learning_rate")
        tensors |= on_host(self.best | {WINDOW + name: value for name, value in self.window.sums.items()})[0]
        facts: dict[str, Any] = {"images": self.images, "step": self.step, "seed": self.seed}
        facts |= {"engine": ENGINE, "config": self.family.config.model_dump(mode="json")}
        facts |= {"doctor": self.monitor.state(), "window": dict(self.window.counts), "measured": self.measured}
        return State(tensors, facts)

    def restore(self, state: State) -> None:
        """Continue from `state`, in a Training made with the same family, config and data."""
        self.images, self.step = state.facts["images"], state.facts["step"]
        self.grow_to(max(0, self.images - self.batch_size))
        restore_networks(self.family, state.tensors)
        restore_moments(self.optimisers, self.family, state.tensors)
        self.best = {name: value.to(self.device) for name, value in state.tensors.items() if name.startswith(BEST)}
        self.monitor.restore(state.facts.get("doctor", {}))
        self.measured = dict(state.facts.get("measured", {}))
        self.window.counts = dict(state.facts.get("window", {}))
        self.window.sums = {name: state.tensors[WINDOW + name].to(self.device).clone() for name in self.window.counts}

    def _inspect(self) -> list[Notice]:
        with self._evaluating():
            notices = self.monitor.inspect(self.family, self.window.pop_means() | self.measured, self.context("look"))
        if keeps_best(self.family) and self.monitor.best is self.monitor.readings[-1]:
            self.best = {BEST + name: value.clone() for name, value in networks(self.family).items()}
        return notices

    def _evaluate_midway(self) -> dict[str, float]:
        with self._evaluating():
            metrics = self.family.evaluate_midway(self.train, self.validation, self.context("appraise"))
        self.measured = {name: value for name, value in metrics.items() if math.isfinite(value)}
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


@torch.no_grad()
def evaluate(
    model: Family, train: Columns, validation: Columns, seed: int, images: int, step: int, quick: bool = False
) -> dict[str, float]:
    """The metrics of a published model: those of `Training.finish` after `images` images in `step` updates."""
    draws = torch.Generator(model.device).manual_seed(derive(seed, "evaluate", step))
    return model.evaluate(train, validation, StepContext(images, model.total, step, seed, draws, quick))


class _Evaluating:
    """Eval mode without gradients inside the block, training mode after it."""

    def __init__(self, family: Family):
        self.family, self.no_grad = family, torch.no_grad()

    def __enter__(self) -> None:
        self.family.eval()
        self.no_grad.__enter__()

    def __exit__(self, *reason: object) -> None:
        self.no_grad.__exit__(*reason)
        self.family.train()


class Meter:
    """Running means of scalars on the device, read by `pop_means` only, so a step never waits for the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Metrics) -> None:
        for name, value in metrics.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Means since the last `pop_means`. Waits for the device."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def pop_means(self) -> dict[str, float]:
        """Means since the last call, which starts new ones. Raises Diverged if one is not finite."""
        means = self.means()
        self.sums, self.counts = {}, {}
        bad = [name for name, mean in means.items() if mean != mean or abs(mean) == float("inf")]
        if bad:
            raise Diverged(f"{bad[0]} is no longer finite", field="config", remedy="lower learning_rate")
        return means
