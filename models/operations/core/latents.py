"""Shared by the operations that decode: latents of the right shape, and labels of conditional models."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import takes_labels
from models.family import Family
from models.operations.core.base import Params, Rows
from models.types import InputError


class LabelParams(Params):
    """Parameters of an operation that decodes."""

    label: int | str | None = Field(None, description="Class by name or index, for conditional models.")


def fitting_latents(model: Family, latents: Tensor) -> Tensor:
    """`latents` as float32 (N, latent_dim). Raises InputError if the shape is wrong or a number is not finite."""
    if latents.ndim != 2 or latents.shape[1] != model.latent_dim:
        shape = "x".join(str(size) for size in latents.shape)
        raise InputError(f"latents must have shape n x {model.latent_dim}; you sent {shape}.", field="latents")
    if not torch.isfinite(latents).all():
        raise InputError("latents must be finite numbers.", field="latents")
    return latents.float()


def label_rows(model: Family, label: int | str | list | None, count: int, cycle: bool = False) -> Rows:
    """`labels` (count,) for a conditional model, nothing for others. Raises InputError for an unsuitable label.

    Several labels are used in turn; without any, `cycle` uses all classes in turn.
    """
    if not takes_labels(model):
        if label is not None:
            raise InputError("This model is not conditional.", field="label", remedy="Remove label.")
        return {}
    if label is None and not cycle:
        raise InputError("Required: label, because this model is conditional.", field="label")
    if label is None:
        return {"labels": model.example_labels(count)}
    labels = torch.tensor([model.label(item) for item in (label if isinstance(label, list) else [label])])
    return {"labels": labels[torch.arange(count) % len(labels)]}


def decode(model: Family, latents: Tensor, rows: Rows) -> Tensor:
    """Images (B, C, H, W), for the labels of the rows if the model is conditional."""
    return model.decode(latents, rows["labels"]) if "labels" in rows else model.decode(latents)
