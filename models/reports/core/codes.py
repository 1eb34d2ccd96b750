"""Shared by reports on codes: the choice of images, and their codes."""

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.evaluation.dataset_view import DatasetView, Selection, Split
from models.reports.core.base import Params, Progress, Subject, require_finite

BATCH = 256


class CodesParams(Params):
    """Which images a report covers."""

    split: Split = Field("validation", description="Split the images come from.")
    images: int = Field(10_000, ge=2, le=100_000, description="Maximum number of images, evenly spaced over the split.")


def view_of(subject: Subject) -> DatasetView:
    """The dataset of the report."""
    return DatasetView(
        subject.model, "of this report", subject.data, {"train": subject.train, "validation": subject.validation}
    )


def encode_all(model: Encodes, view: DatasetView, selection: Selection) -> Generator[Progress, None, Tensor]:
    """Codes (n, latent_dim) of the selected images, on the CPU. Yields Progress after each batch."""
    codes: list[Tensor] = []
    count = 0
    for part in selection.positions.split(BATCH):
        codes.append(model.encode(view.images(part).to(model.device)).cpu())
        count += len(part)
        yield Progress(count, len(selection))
    return require_finite(torch.cat(codes), "the code")
