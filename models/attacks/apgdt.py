"""Targeted Auto-PGD: towards each of the most likely wrong classes in turn, on the targeted DLR loss."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgd import ascend, run_once, start_on_sphere
from models.attacks.core import base as core
from models.attacks.core.multi_target import abreast, spread
from models.attacks.core.norms import wide
from models.attacks.core.run import Climb, Trial
from models.attacks.criteria.classification import Targeted, pick


def likely(trial: Trial, place: int | Tensor) -> tuple[Tensor, Tensor]:
    """The class of each clean image and the one at `place` behind it (1 is the runner-up); or the wanted target.

    A place for all rows, or (N,).
    """
    order = trial.clean_logits.argsort(dim=1, descending=True, stable=True)
    if isinstance(trial.criterion, Targeted):
        return order[:, 0], trial.criterion.targets
    return order[:, 0], order[:, place] if isinstance(place, int) else pick(order, place)


def places(trial: Trial, count: int) -> range:
    """The places to try: with a wanted target there is one."""
    return range(1, 2 if isinstance(trial.criterion, Targeted) else min(count, trial.clean_logits.shape[1] - 1) + 1)


class APGDT(core.Attack):
    name = "apgdt"
    summary = "Auto-PGD towards each of the likeliest wrong classes in turn (Croce & Hein 2020): APGD-T"
    norms = ("linf", "l2", "l1")
    forwards = "min(targets, classes - 1) * (steps + 5) + 2"
    backwards = "min(targets, classes - 1) * (steps + 5)"
    ranks = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="How the perturbation is measured.")
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps towards each class.")
        targets: int = Field(9, ge=1, le=1000, description="How many classes to try, the likeliest first.")
        stop_early: bool = Field(True, description="Leave an image alone once it is adversarial.")

    def steps(self, trial: Trial) -> Iterator[None]:
        tried = places(trial, self.config.targets)
        # most images that fall at all fall to the likeliest class, so the others wait for it
        beside = tried[1:] if spread(trial) and trial.threat.norm != "l1" else tried[:0]
        for place in tried[: len(tried) - len(beside)]:
            trial.state.label, trial.state.target = likely(trial, place)
            given = place == 1 and trial.start is not trial.x
            yield from run_once(trial, self.config.steps, ("target", place), climb(trial), 0.0, given)
        if beside:
            yield from abreast(trial, len(beside), lambda copies, number: self._beside(copies, number, beside))

    def _beside(self, copies: Trial, number: Tensor, tried: range) -> Iterator[None]:
        """A copy of an image for each class, from the starts that they would have had one after another."""
        copies.state.label, copies.state.target = likely(copies, number + tried[0])
        first = copies.x
        for turn, place in enumerate(tried):
            start = start_on_sphere(copies, ("target", place))
            first = torch.where(wide(number == turn, first), start, first)
        yield from ascend(copies, self.config.steps, first, climb(copies), 0.0)


def climb(trial: Trial) -> Climb:
    """The targeted DLR loss (eq. 7); the bare difference where there are fewer than 4 classes."""
    state = trial.state

    def loss(logits: Tensor) -> Tensor:
        gain = pick(logits, state.target) - pick(logits, state.label)
        if logits.shape[1] < 4:
            return gain
        ordered = logits.topk(4, 1).values
        return gain / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)

    return loss
