"""What the operations that decode share: latents that fit the model, and the label of a conditional one."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import takes_labels
from models.family import Family
from models.operations.core.base import Params, Rows
from models.types import InputError


class LabelParams(Params):
    """Parameters of an operation that decodes."""

    label: int | str | None = Field(None, description="Class by name or index, for models that take one.")


def fitting_latents(model: Family, latents: Tensor) -> Tensor:
    """`latents` as float32 (n, latent_dim). Raises InputError when they are not that, or not finite."""
    if latents.ndim != 2 or latents.shape[1] != model.latent_dim:
        given = "x".join(str(size) for size in latents.shape)
        raise InputError(
            f"latents of shape {given} do not fit this model, which decodes n x {model.latent_dim}", field="latents"
        )
    if not torch.isfinite(latents).all():
        raise InputError("latents must be finite numbers", field="latents")
    return latents.float()


def label_rows(model: Family, label: int | str | list | None, count: int, cycle: bool = False) -> Rows:
    """The `labels` (count,) of a conditional model, nothing for others. Raises InputError when the label does not fit.

    Several labels are taken in turn; without any, `cycle` goes through all there are.
    """
    if not takes_labels(model):
        if label is not None:
            raise InputError("this model takes no label", field="label", remedy="leave the label out")
        return {}
    if label is None and not cycle:
        raise InputError("this model decodes for a class: a label is needed", field="label")
    if label is None:
        return {"labels": model.example_labels(count)}
    asked = torch.tensor([model.label(item) for item in (label if isinstance(label, list) else [label])])
    return {"labels": asked[torch.arange(count) % len(asked)]}


def decode(model: Family, latents: Tensor, rows: Rows) -> Tensor:
    """Images (b, c, h, w), for the labels of the rows where the model is conditional."""
    return model.decode(latents, rows["labels"]) if "labels" in rows else model.decode(latents)
