"""Targeted Auto-PGD: towards each of the most likely wrong classes in turn, on the targeted DLR loss."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor

from models.attacks import core
from models.attacks.apgd import run_once
from models.attacks.criterion import Targeted, pick
from models.attacks.trial import Trial


def likely(trial: Trial, place: int) -> tuple[Tensor, Tensor]:
    """The class of each clean image and the one at `place` behind it (1 is the runner-up); or the wanted target."""
    order = trial.clean_logits.argsort(dim=1, descending=True, stable=True)
    wanted = trial.criterion.targets if isinstance(trial.criterion, Targeted) else order[:, place]
    return order[:, 0], wanted


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
        state = trial.state

        def climb(logits: Tensor) -> Tensor:
            """The targeted DLR loss (eq. 7); the bare difference where there are fewer than 4 classes."""
            gain = pick(logits, state.target) - pick(logits, state.label)
            if logits.shape[1] < 4:
                return gain
            ordered = logits.topk(4, 1).values
            return gain / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)

        for place in places(trial, self.config.targets):
            state.label, state.target = likely(trial, place)
            given = place == 1 and trial.start is not trial.x
            yield from run_once(trial, self.config.steps, ("target", place), climb, 0.0, given)
