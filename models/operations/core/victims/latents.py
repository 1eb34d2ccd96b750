"""Models that make something of an image, under attack: its code, its reconstruction, its translation.

What is made is driven away from what it was or, with towards=last, nearer to what is made of the last image sent.
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


class PointVictim(Victim):
    """Success is told by distances alone: beyond `reach` units, or nearer to the aim than to what it was."""

    reach: ClassVar[float]
    """How far is far enough when the request does not say."""
    settings = frozenset({"goal", "towards", "reach"})
    fooled = "The output is there already: the image is returned unchanged."

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        """Whatever attacks classifiers by a margin alone, not by the order of their classes."""
        return Classifies in attack.victims and not attack.needs_class_scores and attack.access != "labels"

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        if params.target is not None:
            raise ConfigError(f"the goal {self.goals[0]} knows no classes", field="target", remedy="give towards=last")
        if params.towards is None:
            return {}
        if params.reach is not None:
            raise ConfigError("reach says how far away; with towards it means nothing", field="reach")
        if len(inputs) < 2:
            raise InputError(
                "towards=last needs two images or more: those to change, and last the one to come near to",
                field="towards",
                remedy="send the aim as a last image",
            )
        return {"inputs": inputs[:-1], "aims": inputs[-1:].expand(len(inputs) - 1, -1, -1, -1).clone()}

    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        x = rows["inputs"]
        origin = self.origin(x, clean)
        if "aims" in rows:
            return CloserTo(self.aim(model, rows["aims"]), origin)
        return FarFrom(origin, (params.reach or self.reach) * self.unit(model, x, clean))

    def origin(self, x: Tensor, clean: Tensor) -> Tensor:
        """Where the output is to leave from."""
        return clean

    def aim(self, model: Family, images: Tensor) -> Tensor:
        """Where the output is to go."""
        return self.outputs(model, images)

    def unit(self, model: Family, x: Tensor, clean: Tensor) -> Tensor:
        """(N,): the distance that `reach` counts in."""
        return torch.ones(len(x), device=x.device)

    def seen(self, outputs: Tensor) -> Tensor:
        return outputs

    def truth(self, criterion: Criterion) -> Rows:
        return {name: value for name, value in vars(criterion).items() if isinstance(value, Tensor)}

    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """Root mean square distances: the one reached and the one wanted, or to the aim and to where it was."""
        far = {name: float(rms_distance(seen[None], found[name][row : row + 1])) for name in ("origin", "target")
               if name in found}  # fmt: skip
        if "target" in far:
            return {"to_target": far["target"], "to_own": far["origin"]}
        return {"distance": far["origin"], "wanted": float(found["radius"][row])}

    def given(self, rows: Rows, row: int) -> bool:
        return True

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        return {"output_before": found["clean"].clamp(0, 1), "output_after": found["adversarial"].clamp(0, 1)}


class CodeVictim(PointVictim):
    """Distances are between codes; the unit is how far the code of the same picture turned upside down lies."""

    capability = Encodes
    title = "encodes"
    goals = ("latents",)
    reach = 0.5

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.encode(images).flatten(1)[:, :, None]  # a third axis: codes are no scores of classes

    def unit(self, model: Family, x: Tensor, clean: Tensor) -> Tensor:
        return rms_distance(self.outputs(model, x.flip(2, 3)), clean)

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        return {}


class ReconstructionVictim(PointVictim):
    """Distances are between the reconstruction and the image itself; the unit is the clean image's own."""

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


class TranslationVictim(PointVictim):
    """Distances are between translations, in units of the whole pixel range."""

    capability = Translates
    title = "translates"
    goals = ("translation",)
    settings = PointVictim.settings | {"direction"}
    reach = 0.1

    def __init__(self, params: Params | None = None):
        super().__init__(params)
        self.direction = getattr(params, "direction", None)

    @property
    def key(self) -> tuple:
        return *super().key, self.direction

    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        if params.direction not in (None, *model.directions):
            known = " and ".join(model.directions)
            raise InputError(f"this model translates {known} only, not {params.direction}", field="direction")
        return super().rows(model, inputs, params)

    def outputs(self, model: Family, images: Tensor) -> Tensor:
        return model.translate(images, self.direction or model.directions[0])
