"""Projected gradient descent (Madry et al. 2018): gradient steps from random points of the ball."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from models.attacks.core import descent
from models.attacks.core.descent import random_start
from models.attacks.core.run import AttackRun, LossFn


class PGD(descent.Descent):
    name = "pgd"
    summary = "Repeated gradient steps, projected back into the ball, from a random start (Madry et al. 2018)"

    forwards = "restarts * (steps + 1) + 2"
    backwards = "restarts * steps"

    class Config(descent.Descent.Config):
        steps: int = Field(40, ge=1, le=10_000, description="Gradient steps.")
        random_start: bool = Field(True, description="Start at a random point of the ball.")
        restarts: int = Field(1, ge=1, le=100, description="Runs from other starts for images that hold out.")
        loss: Literal["ce", "margin", "dlr"] = Field("ce", description="What the steps climb.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        for restart in range(self.config.restarts):
            given = restart == 0 and run.start is not run.x
            # A random point of the L1 ball spends the budget on every pixel; the image itself is the better start.
            plain = given or (restart == 0 and run.threat.norm == "l1")
            at_random = self.config.random_start and not plain
            yield from self.descend(
                run, random_start(run, restart) if at_random else self.first(run), _loss_fn(self, run)
            )


def _loss_fn(attack: PGD, run: AttackRun) -> LossFn | None:
    """The chosen loss. It reads the run anew each time, because rows may have been put away."""
    losses: dict[str, LossFn | None] = {
        "ce": None,
        "margin": lambda logits: run.criterion.margin_loss(logits),
        "dlr": lambda logits: run.criterion.dlr(logits),
    }
    return losses[attack.config.loss]
