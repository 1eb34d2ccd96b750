"""Images through the code and back, also by models that decode for a label."""

from abc import ABC, abstractmethod

from torch import Tensor

from models.capabilities import Conditional
from models.family import Family
from models.types import InputError


class Recognises(ABC):
    """A conditional model that encodes, and can tell for itself which label an image is best decoded for."""

    @abstractmethod
    def recognise(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> labels (b,)."""


def redraw(model: Family, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes of images (b, c, h, w), and what they decode to: for `labels` (b,), else for those the model recognises.

    Raises InputError for a conditional model that needs to be told.
    """
    codes = model.encode(images)
    if not isinstance(model, Conditional):
        return codes, model.decode(codes)
    if labels is None and not isinstance(model, Recognises):
        raise InputError("this model decodes for a class: a label is needed", field="label")
    return codes, model.decode(codes, model.recognise(images) if labels is None else labels)
