"""What the attack operation needs to know about a kind of model: its outputs, its truth, its criterion, its facts."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from models.attacks.core.base import Attack
from models.attacks.criteria.classification import Criterion
from models.family import Family
from models.operations.core.base import Params, Rows
from models.types import InputError


class Victim(ABC):
    """Works on rows: images (N, C, H, W) and columns that belong to them."""

    capability: ClassVar[type]
    title: ClassVar[str]
    """What such models do: completes the sentence "a model that ..."."""
    settings: ClassVar[frozenset[str]]
    """Parameters of a request that this kind understands, beside the common ones."""
    fooled: ClassVar[str]
    """Note for an image that is adversarial without an attack."""
    presumed: ClassVar[str] = ""
    """Note for an image whose truth was not sent."""
    left_out: ClassVar[str] = ""
    """Note for an image of whose true objects some cannot be attacked (the fact `left_out`)."""
    nothing_left: ClassVar[str] = ""
    """Note for an image none of whose true objects can be attacked."""
    goals: ClassVar[tuple[str, ...]] = ()
    """Values of the parameter `goal`, the default first."""

    def __init__(self, params: Params | None = None):
        """`params` are those of any request of a batch."""
        self.params = params

    @classmethod
    def fits(cls, model: Family) -> bool:
        """Whether the model is of this kind."""
        return isinstance(model, cls.capability)

    @classmethod
    def suits(cls, attack: type[Attack] | Attack) -> bool:
        """Whether the attack works on models of this kind."""
        return cls.capability in attack.victims

    @property
    def key(self) -> tuple:
        """Identifies `outputs`: equal keys give equal outputs of a model."""
        return (type(self).__name__,)

    @abstractmethod
    def outputs(self, model: Family, images: Tensor) -> Tensor:
        """The outputs that are attacked, differentiable."""

    @abstractmethod
    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        """The truth and the target of each image, and `inputs` if not all images are attacked.

        Raises InputError or ConfigError naming the invalid parameter.
        """

    @abstractmethod
    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        """When an image counts as adversarial. A truth that was not sent is taken from the `clean` outputs."""

    @abstractmethod
    def seen(self, outputs: Tensor) -> Tensor:
        """The part of outputs (N, ...) that `describe` and `pictures` need."""

    def truth(self, criterion: Criterion) -> Rows:
        """The tensors of the criterion that `describe` needs."""
        return {}

    @abstractmethod
    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """The facts of one image, from its row of `seen`; fewer with `brief`, in a sweep."""

    @abstractmethod
    def given(self, rows: Rows, row: int) -> bool:
        """Whether the request contained the truth of this image."""

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        """Further pictures of the answer, by name."""
        return {}


def plane(model: Family, value: Tensor | None, field: str) -> Tensor | None:
    """A parameter with one number per pixel as int64 (H, W). Raises InputError for another size."""
    if value is None:
        return None
    height, width = model.data.shape[1:]
    shape = tuple(torch.as_tensor(value).shape)
    if shape != (height, width):
        raise InputError(
            f"{field} must be {height} x {width} pixels (height x width); you sent {' x '.join(map(str, shape))}.",
            field=field,
            remedy="Send a PNG of the image's size.",
        )
    return torch.as_tensor(value).long()


def area(model: Family, value: Tensor | None, field: str) -> Tensor | None:
    """A parameter that selects pixels (those not black) as bool (H, W). Raises InputError if none is selected."""
    values = plane(model, value, field)
    if values is not None and not bool(values.any()):
        raise InputError(f"{field} is all black: it selects no pixel.", field=field, remedy="Paint pixels white.")
    return None if values is None else values > 0


def class_index(model: Family, label: str | int, field: str) -> int:
    """The index of a class; the error names `field`."""
    try:
        return model.data.class_index(label)
    except InputError as error:
        raise InputError(error.detail, field=field, remedy=error.remedy) from None
