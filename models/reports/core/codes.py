"""What several reports need of codes: which images they are of, and the codes themselves."""

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.evaluation.dataset_view import DatasetView, Selection, Split
from models.reports.core.base import Params, Progress, Subject

BATCH = 256


class CodesParams(Params):
    """Which images a report looks at."""

    split: Split = Field("validation", description="Images of which side.")
    images: int = Field(10_000, ge=2, le=100_000, description="At most so many images, evenly spaced.")


def view_of(subject: Subject) -> DatasetView:
    """The dataset reported on."""
    return DatasetView(
        subject.model, "of this report", subject.data, {"train": subject.train, "validation": subject.validation}
    )


def encode_all(model: Encodes, view: DatasetView, selection: Selection) -> Generator[Progress, None, Tensor]:
    """Codes (n, latent_dim) of the picked images, on the CPU. Yields progress on the way."""
    found, done = [], 0
    for part in selection.positions.split(BATCH):
        found.append(model.encode(view.images(part).to(model.device)).cpu())
        done += len(part)
        yield Progress(done, len(selection))
    return torch.cat(found)


def standardised(codes: Tensor, reference: Tensor | None = None) -> Tensor:
    """Codes with zero mean and unit spread per dimension, by the statistics of `reference` (default: themselves)."""
    reference = codes if reference is None else reference
    spread = reference.std(0, correction=0)
    return (codes - reference.mean(0)) / torch.where(spread > 1e-8, spread, torch.ones_like(spread))
