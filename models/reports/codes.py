"""What several reports need of codes: the codes of a dataset, and labels beside them."""

from collections.abc import Generator

import torch
from torch import Tensor

from models.data import Columns
from models.family import Encodes
from models.reports.core import Progress

BATCH = 256


def encode_all(
    model: Encodes, columns: Columns, limit: int, whole: int | None = None
) -> Generator[Progress, None, Tensor]:
    """Codes (n, latent_dim) of the first `limit` images, in stored order, on the CPU. Yields progress on the way."""
    total = min(len(columns), limit)
    found = []
    for batch in columns.batches(BATCH, total):
        found.append(model.encode(batch["images"].to(model.device)).cpu())
        yield Progress(sum(map(len, found)), whole or total)
    return torch.cat(found) if found else torch.empty(0, model.latent_dim)


def column(columns: Columns, name: str, limit: int) -> Tensor:
    """The first `limit` rows of one column."""
    count = min(len(columns), limit)
    return columns.rows(torch.arange(count), [name])[name]


def standardised(codes: Tensor, reference: Tensor | None = None) -> Tensor:
    """Codes with zero mean and unit spread per dimension, by the statistics of `reference` (default: themselves)."""
    reference = codes if reference is None else reference
    spread = reference.std(0, correction=0)
    return (codes - reference.mean(0)) / torch.where(spread > 1e-8, spread, torch.ones_like(spread))
