"""What a defence is: a stage between the image and the model, and how an attacker's gradient goes through it.

A stage is one class in a file of this folder. What cannot be differentiated passes the gradient straight through
(backward pass differentiable approximation, Athalye et al. 2018), so that every white-box attack on a defended model
is an adaptive one.
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
    """One stage: images (b, c, h, w) in [0, 1] -> the same shape and range, row by row."""

    name: ClassVar[str]
    summary: ClassVar[str]
    random: ClassVar[bool] = False
    """Draws anew each time it is asked, so that a model behind it answers by vote."""
    smooth: ClassVar[bool] = False
    """Has a gradient of its own; without one the gradient passes straight through."""
    helper: ClassVar[tuple[type, ...]] = ()
    """Capabilities, one of which a model that the stage works with must have; none: it needs no model."""
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
        found = self.apply_to(images, rng)
        return found if self.smooth else straight(images, found)


def straight(before: Tensor, after: Tensor) -> Tensor:
    """`after`, with the gradient of `before`."""
    return before + (after - before).detach() if before.requires_grad else after


def read_config(kind: type[Defence], values: dict, where: str = "stages") -> Config:
    """The typed settings of a stage. Raises ConfigError naming the first fault."""
    try:
        return kind.Config(**values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = "/".join(str(part) for part in first["loc"])
        raise ConfigError(f"{kind.name}: {path}: {first['msg']}", f"{where}/{path}") from None
