"""Images through the code and back, also by models that decode for a label."""

from torch import Tensor

from models.capabilities import takes_labels
from models.family import Family
from models.types import InputError


def reconstruct(model: Family, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes of images (b, c, h, w), and what they decode to: for `labels` (b,), else for those the model recognises.

    Raises InputError for a conditional model that needs to be told.
    """
    codes = model.encode(images)
    if not takes_labels(model):
        return codes, model.decode(codes)
    if labels is None and not model.infers_labels:
        raise InputError("Required: label, because this model is conditional.", field="label")
    return codes, model.decode(codes, model.infer_labels(images) if labels is None else labels)
