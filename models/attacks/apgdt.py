"""Targeted Auto-PGD: towards each of the most likely wrong classes in turn, on the targeted DLR loss."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgd import ascend, run_once, start_on_sphere
from models.attacks.core import base as core
from models.attacks.core.multi_target import copies_pay, run_targets_together
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun, LossFn
from models.attacks.criteria.classification import Targeted, pick


def likely(run: AttackRun, place: int | Tensor) -> tuple[Tensor, Tensor]:
    """The class of each clean image and the one at `place` behind it (1 is the runner-up); or the wanted target.

    A place for all rows, or (N,).
    """
    order = run.clean_logits.argsort(dim=1, descending=True, stable=True)
    if isinstance(run.criterion, Targeted):
        return order[:, 0], run.criterion.targets
    return order[:, 0], order[:, place] if isinstance(place, int) else pick(order, place)


def places(run: AttackRun, count: int) -> range:
    """The places to try: with a wanted target there is one."""
    return range(1, 2 if isinstance(run.criterion, Targeted) else min(count, run.clean_logits.shape[1] - 1) + 1)


class APGDT(core.Attack):
    name = "apgdt"
    summary = "Auto-PGD towards each of the likeliest wrong classes in turn (Croce & Hein 2020): APGD-T"
    norms = ("linf", "l2", "l1")
    forwards = "min(targets, classes - 1) * (steps + 5) + 2"
    backwards = "min(targets, classes - 1) * (steps + 5)"
    needs_class_scores = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="How the perturbation is measured.")
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps towards each class.")
        targets: int = Field(9, ge=1, le=1000, description="How many classes to try, the likeliest first.")
        stop_early: bool = Field(True, description="Leave an image alone once it is adversarial.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        tried = places(run, self.config.targets)
        # most images that fall at all fall to the likeliest class, so the others wait for it
        beside = tried[1:] if copies_pay(run) and run.threat.norm != "l1" else tried[:0]
        for place in tried[: len(tried) - len(beside)]:
            run.state.label, run.state.target = likely(run, place)
            given = place == 1 and run.start is not run.x
            yield from run_once(run, self.config.steps, ("target", place), targeted_dlr(run), 0.0, given)
        if beside:
            yield from run_targets_together(
                run, len(beside), lambda copies, number: self._beside(copies, number, beside)
            )

    def _beside(self, copies: AttackRun, number: Tensor, tried: range) -> Iterator[None]:
        """A copy of an image for each class, from the starts that they would have had one after another."""
        copies.state.label, copies.state.target = likely(copies, number + tried[0])
        first = copies.x
        for turn, place in enumerate(tried):
            start = start_on_sphere(copies, ("target", place))
            first = torch.where(expand_to(number == turn, first), start, first)
        yield from ascend(copies, self.config.steps, first, targeted_dlr(copies), 0.0)


def targeted_dlr(run: AttackRun) -> LossFn:
    """The targeted DLR loss (eq. 7); the bare difference where there are fewer than 4 classes."""
    state = run.state

    def loss(logits: Tensor) -> Tensor:
        gain = pick(logits, state.target) - pick(logits, state.label)
        if logits.shape[1] < 4:
            return gain
        ordered = logits.topk(4, 1).values
        return gain / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)

    return loss
