"""Targeted Auto-PGD (Croce & Hein 2020): towards each of the most likely wrong classes, with the targeted DLR loss."""

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


def label_and_target(run: AttackRun, place: int | Tensor) -> tuple[Tensor, Tensor]:
    """(N,), (N,): the predicted class of each clean image and the class of rank `place` (1 is the second best).

    With a Targeted criterion its target. `place` is a number for all rows, or (N,).
    """
    order = run.clean_logits.argsort(dim=1, descending=True, stable=True)
    if isinstance(run.criterion, Targeted):
        return order[:, 0], run.criterion.targets
    return order[:, 0], order[:, place] if isinstance(place, int) else pick(order, place)


def target_ranks(run: AttackRun, count: int) -> range:
    """The ranks of classes to try; one for a Targeted criterion."""
    return range(1, 2 if isinstance(run.criterion, Targeted) else min(count, run.clean_logits.shape[1] - 1) + 1)


class APGDT(core.Attack):
    name = "apgdt"
    summary = "Auto-PGD towards each of the most likely wrong classes (Croce & Hein 2020): APGD-T"
    norms = ("linf", "l2", "l1")
    forwards = "min(targets, classes - 1) * (steps + 5) + 2"
    backwards = "min(targets, classes - 1) * (steps + 5)"
    needs_class_scores = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps for each target class.")
        targets: int = Field(9, ge=1, le=1000, description="Number of target classes to try, the most likely first.")
        stop_early: bool = Field(True, description="Stop on an image once it is adversarial.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        ranks = target_ranks(run, self.config.targets)
        # most successes are with the most likely class, so the others are tried afterwards, all together
        together = ranks[1:] if copies_pay(run) and run.threat.norm != "l1" else ranks[:0]
        for place in ranks[: len(ranks) - len(together)]:
            run.state.label, run.state.target = label_and_target(run, place)
            from_caller = place == 1 and run.start is not run.x
            yield from run_once(run, self.config.steps, ("target", place), targeted_dlr(run), 0.0, from_caller)
        if together:
            yield from run_targets_together(
                run, len(together), lambda copies, number: self._towards_each(copies, number, together)
            )

    def _towards_each(self, copies: AttackRun, number: Tensor, ranks: range) -> Iterator[None]:
        """One copy of an image for each class, from the starting points of a sequential run."""
        copies.state.label, copies.state.target = label_and_target(copies, number + ranks[0])
        first = copies.x
        for turn, place in enumerate(ranks):
            start = start_on_sphere(copies, ("target", place))
            first = torch.where(expand_to(number == turn, first), start, first)
        yield from ascend(copies, self.config.steps, first, targeted_dlr(copies), 0.0)


def targeted_dlr(run: AttackRun) -> LossFn:
    """-(z_y - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2): targeted DLR (eq. 7); z_t - z_y for fewer than 4 classes."""
    state = run.state

    def loss(logits: Tensor) -> Tensor:
        gain = pick(logits, state.target) - pick(logits, state.label)
        if logits.shape[1] < 4:
            return gain
        ordered = logits.topk(4, 1).values
        return gain / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)

    return loss
