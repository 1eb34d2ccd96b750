"""AutoAttack, standard version (Croce & Hein 2020): four attacks in turn, each on images not yet adversarial."""

from typing import Literal

from pydantic import Field

from models.attacks.apgd import APGD
from models.attacks.apgdt import APGDT
from models.attacks.core import base as core
from models.attacks.core.combine import Sequence
from models.attacks.fab import FAB
from models.attacks.square import Square


class AutoAttack(Sequence):
    name = "autoattack"
    summary = "APGD-CE, APGD-T, FAB-T and Square in turn, each on images not yet adversarial (Croce & Hein 2020)"
    norms = ("linf", "l2", "l1")
    forwards = "5 * (steps + 5) + min(targets, classes - 1) * (3 * steps + 8) + 1.25 * queries + 25"
    backwards = "5 * (steps + 5) + min(targets, classes - 1) * (2 * steps + 6)"
    needs_class_scores = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(100, ge=1, le=10_000, description="Steps of each gradient attack and target class.")
        targets: int = Field(9, ge=1, le=1000, description="Number of target classes of the targeted attacks.")
        queries: int = Field(5000, ge=1, le=100_000, description="Queries of Square per image.")

    @property
    def parts(self) -> list[core.Attack]:
        config = self.config
        common = {"norm": config.norm, "steps": config.steps}
        l1 = config.norm == "l1"  # the reference's settings for L1
        return [
            APGD(**common, restarts=5 if l1 else 1),
            APGDT(**common, targets=min(config.targets, 5) if l1 else config.targets),
            FAB(**common, targets=config.targets),
            Square(norm=config.norm, queries=config.queries, rescale=False),
        ]
