"""Encode and decode images, with labels for conditional models."""

from torch import Tensor

from models.capabilities import takes_labels
from models.family import Family
from models.types import InputError


def reconstruct(model: Family, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes of images (b, c, h, w) and their reconstructions.

    A conditional model decodes for `labels` (b,), by default those it infers. Raises InputError if it infers none.
    """
    codes = model.encode(images)
    if not takes_labels(model):
        return codes, model.decode(codes)
    if labels is None and not model.infers_labels:
        raise InputError("Required: label, because this model is conditional.", field="label")
    return codes, model.decode(codes, model.infer_labels(images) if labels is None else labels)
