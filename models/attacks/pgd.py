"""Projected gradient descent (Madry et al. 2018): gradient steps that start at random points of the ball."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from models.attacks.core import descent
from models.attacks.core.descent import random_start
from models.attacks.core.run import AttackRun, LossFn


class PGD(descent.Descent):
    name = "pgd"
    summary = "Projected gradient steps from a random start (Madry et al. 2018)"

    forwards = "restarts * (steps + 1) + 2"
    backwards = "restarts * steps"

    class Config(descent.Descent.Config):
        steps: int = Field(40, ge=1, le=10_000, description="Gradient steps.")
        random_start: bool = Field(True, description="Start at a random point of the ball.")
        restarts: int = Field(
            1, ge=1, le=100, description="Number of runs; later ones only for images not yet adversarial."
        )
        loss: Literal["ce", "margin", "dlr"] = Field(
            "ce", description="Loss that the steps increase: cross-entropy, margin or difference of logits ratio."
        )

    def steps(self, run: AttackRun) -> Iterator[None]:
        for restart in range(self.config.restarts):
            from_caller = restart == 0 and run.start is not run.x
            # A random point of the L1 ball spreads eps over every pixel; the image itself is the better start.
            plain = from_caller or (restart == 0 and run.threat.norm == "l1")
            at_random = self.config.random_start and not plain
            yield from self.descend(
                run, random_start(run, restart) if at_random else self.first(run), _loss_fn(self, run)
            )


def _loss_fn(attack: PGD, run: AttackRun) -> LossFn | None:
    """The loss of the config. Reads `run.criterion` in each step, because rows may have been removed."""
    losses: dict[str, LossFn | None] = {
        "ce": None,
        "margin": lambda logits: run.criterion.margin_loss(logits),
        "dlr": lambda logits: run.criterion.dlr(logits),
    }
    return losses[attack.config.loss]
