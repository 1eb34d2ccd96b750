"""Codes, reconstructions and translations under attack.

The output is moved away from that of the clean image or, with towards=last, towards that of the last image sent.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.attacks.criteria.classification import Criterion
from models.attacks.criteria.latents import CloserTo, FarFrom, rms_distance
from models.capabilities import Classifies, Decodes, Encodes, Translates, takes_labels
from models.family import Family
from models.operations.core.base import Params, Rows
from models.operations.core.victims.base import Victim
from models.types import ConfigError, InputError


class OutputDistanceVictim(Victim):
    """Success: the output moved by at least `reach` units, or is nearer to the target output than to the clean one."""

    reach: ClassVar[float]
    """Default of the parameter `reach`."""
    settings = frozenset({"goal", "towards", "reach"})
    fooled = "The goal is reached without an attack: the image is returned unchanged."

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        """Attacks on classifiers that use the margin alone, not the scores of the classes."""
        return Classifies in attack.victims and not attack.needs_class_scores and attack.access != "labels"

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        if params.target is not None:
            raise ConfigError(
                f"goal={self.goals[0]} takes no target class.", field="target", remedy="Use towards=last."
            )
        if params.towards is None:
            return {}
        if params.reach is not None:
            raise ConfigError("reach and towards cannot be combined.", field="reach", remedy="Remove one of them.")
        if len(inputs) < 2:
            raise InputError(
                f"towards=last needs at least 2 images, the target last; you sent {len(inputs)}.",
                field="towards",
                remedy="Send the target as the last image.",
            )
        return {"inputs": inputs[:-1], "aims": inputs[-1:].expand(len(inputs) - 1, -1, -1, -1).clone()}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        x = rows["inputs"]
        origin = self.origin(x, clean)
        if "aims" in rows:
            return CloserTo(self.aim(model, rows["aims"]), origin)
        return FarFrom(origin, (params.reach or self.reach) * self.unit(model, x, clean))

    def origin(self, x: Tensor, clean: Tensor) -> Tensor:
        """The output to move away from."""
        return clean

    def aim(self, model: Family, images: Tensor) -> Tensor:
        """The output to move towards."""
        return self.outputs(model, images)

    def unit(self, model: Family, x: Tensor, clean: Tensor) -> Tensor:
        """(N,): the unit of `reach`."""
        return torch.ones(len(x), device=x.device)

    def seen(self, outputs: Tensor) -> Tensor:
        return outputs

    def truth(self, criterion: Criterion) -> Rows:
        return {name: value for name, value in vars(criterion).items() if isinstance(value, Tensor)}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """RMS distances: the one reached and the one required, or those to the target and to the clean output."""
        distances = {name: float(rms_distance(seen[None], found[name][row : row + 1])) for name in ("origin", "target")
               if name in found}  # fmt: skip
        if "target" in distances:
            return {"to_target": distances["target"], "to_own": distances["origin"]}
        return {"distance": distances["origin"], "wanted": float(found["radius"][row])}

    def given(self, rows: Rows, row: int) -> bool:
        return True

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        return {"output_before": found["clean"].clamp(0, 1), "output_after": found["adversarial"].clamp(0, 1)}


class EncoderVictim(OutputDistanceVictim):
    """Distances are between codes; the unit is the distance to the code of the image rotated by 180 degrees."""

    capability = Encodes
    title = "encodes"
    goals = ("latents",)
    reach = 0.5

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.encode(images).flatten(1)[:, :, None]  # a third axis, so that codes are not taken for class scores

    def unit(self, model: Family, x: Tensor, clean: Tensor) -> Tensor:
        return rms_distance(self.outputs(model, x.flip(2, 3)), clean)

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        return {}


class ReconstructionVictim(OutputDistanceVictim):
    """Distances are between the reconstruction and the clean image; the unit is that of the clean reconstruction."""

    capability = Encodes
    title = "reconstructs"
    goals = ("reconstruction",)
    reach = 1.5

    @classmethod
    def fits(cls, model: Family) -> bool:
        return isinstance(model, Encodes) and isinstance(model, Decodes) and not takes_labels(model)

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.decode(model.encode(images))

    def origin(self, x: Tensor, clean: Tensor) -> Tensor:
        return x

    def aim(self, model: Family, images: Tensor) -> Tensor:
        return images

    def unit(self, model: Family, x: Tensor, clean: Tensor) -> Tensor:
        return rms_distance(clean, x)


class TranslationVictim(OutputDistanceVictim):
    """Distances are between translations, in units of the whole pixel range."""

    capability = Translates
    title = "translates"
    goals = ("translation",)
    settings = OutputDistanceVictim.settings | {"direction"}
    reach = 0.1

    def __init__(self, params: Params | None = None):
        super().__init__(params)
        self.direction = getattr(params, "direction", None)

    @property
    def key(self) -> tuple:
        return *super().key, self.direction

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        if params.direction not in (None, *model.directions):
            allowed = " or ".join(model.directions)
            raise InputError(f"direction must be {allowed}; you sent {params.direction}.", field="direction")
        return super().rows(model, inputs, params)

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.translate(images, self.direction or model.directions[0])
