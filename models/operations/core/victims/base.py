"""What the attack operation has to know of a kind of model: what is asked of it, and how its answers read."""

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
    """Everything is told of rows: images (N, C, H, W) and what belongs to them."""

    capability: ClassVar[type]
    title: ClassVar[str]
    """What such models do, as a verb in a sentence."""
    settings: ClassVar[frozenset[str]]
    """Parameters of a request that only this kind understands."""
    fooled: ClassVar[str]
    """A sentence for an image that needed no attack."""
    presumed: ClassVar[str] = ""
    """A sentence for an image whose truth was not given."""
    left_out: ClassVar[str] = ""
    """A sentence for an image part of whose truth the attack is not asked to change (a fact `left_out`)."""
    nothing_left: ClassVar[str] = ""
    """The same, where that is all of the truth."""
    goals: ClassVar[tuple[str, ...]] = ()
    """What an attack can be after, where there is more than one thing."""

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
        """What decides `outputs` beside the model."""
        return (type(self).__name__,)

    @abstractmethod
    def outputs(self, model: Family, images: Tensor) -> Tensor:
        """What an attacker is shown, with a gradient."""

    @abstractmethod
    def rows(self, model: Family, inputs: Tensor, params: Params) -> Rows:
        """The truth and the aim of each image, and `inputs` where not all images are attacked.

        Raises InputError naming the parameter that cannot stay.
        """

    @abstractmethod
    def criterion(self, model: Family, rows: Rows, clean: Tensor, params: Params) -> Criterion:
        """When an image counts as adversarial. Where no truth was given, what the `clean` outputs say is taken."""

    @abstractmethod
    def seen(self, outputs: Tensor) -> Tensor:
        """What is kept of outputs (N, ...), to be described and shown."""

    def truth(self, criterion: Criterion) -> Rows:
        """What of the criterion `describe` needs to know."""
        return {}

    @abstractmethod
    def describe(self, model: Family, seen: Tensor, found: Rows, row: int, brief: bool = False) -> dict[str, Any]:
        """The facts of what was seen of one image (one row of `seen`); `brief` in a sweep."""

    @abstractmethod
    def given(self, rows: Rows, row: int) -> bool:
        """Whether the request said what is true of this image."""

    def pictures(self, model: Family, found: Rows) -> dict[str, Tensor]:
        """What to show beside the adversarial image."""
        return {}


def plane(model: Family, value: Tensor | None, field: str) -> Tensor | None:
    """A parameter of one number per pixel as int64 (H, W). Raises InputError when it has another size."""
    if value is None:
        return None
    height, width = model.data.shape[1:]
    given = tuple(torch.as_tensor(value).shape)
    if given != (height, width):
        raise InputError(
            f"{field} is {' x '.join(map(str, given))} pixels (height x width), the image {height} x {width}",
            field=field,
            remedy="send a PNG of the image's size",
        )
    return torch.as_tensor(value).long()


def area(model: Family, value: Tensor | None, field: str) -> Tensor | None:
    """A parameter that chooses pixels, those that are not black, as bool (H, W). Raises InputError when none is."""
    chosen = plane(model, value, field)
    if chosen is not None and not bool(chosen.any()):
        raise InputError(f"{field} is all black, so it leaves no pixel", field=field, remedy="paint pixels white")
    return None if chosen is None else chosen > 0


def class_index(model: Family, label: str | int, field: str) -> int:
    """The index of a class; the error names `field`."""
    try:
        return model.data.class_index(label)
    except InputError as error:
        raise InputError(error.detail, field=field, remedy=error.remedy) from None
