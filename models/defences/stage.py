"""The base of defences: stages between the image and the model.

A stage is one class in `models/defences/stages/`. A stage without a gradient passes the gradient straight through
(backward pass differentiable approximation, Athalye et al. 2018), so that every white-box attack on a defended model
is adaptive.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from models.attacks.core.rng import RowRNG
from models.family import Family
from models.types import ConfigError


class Config(BaseModel):
    """Settings of a stage."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Defence(nn.Module, ABC):
    """One stage: images (b, c, h, w) in [0, 1] -> images of the same shape and range, each row on its own."""

    name: ClassVar[str]
    summary: ClassVar[str]
    random: ClassVar[bool] = False
    """Draws random numbers, so that the model behind it averages several answers."""
    differentiable: ClassVar[bool] = False
    """Has a useful gradient of its own; otherwise the gradient passes straight through."""
    helper: ClassVar[tuple[type, ...]] = ()
    """Capabilities; its own model must have one of them. Empty: it needs no model."""
    Config: ClassVar[type[Config]] = Config

    def __init__(self, config: Config, model: Family | None = None):
        super().__init__()
        self.config = config
        if model is not None:
            self.model = model

    @abstractmethod
    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        """The images after this stage; `rng` gives each row its random numbers."""

    def forward(self, images: Tensor, rng: RowRNG) -> Tensor:
        changed = self.apply_to(images, rng)
        return changed if self.differentiable else straight_through(images, changed)


def straight_through(before: Tensor, after: Tensor) -> Tensor:
    """The values of `after` with the gradient of `before`."""
    return before + (after - before).detach() if before.requires_grad else after


def read_config(kind: type[Defence], values: dict, where: str = "stages") -> Config:
    """The typed settings of a stage or detector. Raises ConfigError with the first error."""
    try:
        return kind.Config(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = "/".join(str(part) for part in first["loc"])
        raise ConfigError(f"{kind.name}: {path}: {first['msg']}", f"{where}/{path}") from None
