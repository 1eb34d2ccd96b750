"""The dataset of a job, by name, with its licence and attribution for the model card."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from sqlalchemy import Engine, select

from app.core.catalog.builtins import BUILTINS
from app.core.errors import InvalidDataset, NotFound
from app.core.store.database import reading
from app.core.store.tables import datasets
from models.data import Columns
from models.training.prefetch import Prefetched
from workers.data import OpenDataset, ensure_builtin, open_dataset
from workers.store.dataset_cache import DatasetCache

RESIDENT_SHARE = 0.25
"""A dataset is kept on the accelerator if it takes at most this fraction of the free memory."""


@dataclass(frozen=True)
class Source:
    """`data` holds memory-mapped columns, which stay readable if the dataset is deleted meanwhile."""

    data: OpenDataset
    licence: str | None
    attribution: str | None

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for side in (self.data.train, self.data.validation) for array in side.values())

    def columns(self, device: torch.device, tick: Callable[[], None] = lambda: None) -> tuple[Columns, Columns]:
        """The training and the validation split for networks on `device`, the first with the cache of the dataset.

        `tick` is called while something is learned for the cache, and may raise to stop.
        """
        train = Columns(self.data.train, DatasetCache(self.data.digest, tick))
        validation = Columns(self.data.validation)
        if device.type != "cuda":
            return train, validation
        loaded = self.bytes < RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        if loaded:
            return train.to(device), validation.to(device)
        return Prefetched(train, device), validation.onto(device)


def open_source(
    bind: Engine | None,
    tenant: str,
    name: str,
    digest: str | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Source:
    """The dataset `name` of the tenant; imports a built-in one that the tenant does not have yet.

    With `digest` (from the checkpoint of an interrupted training) exactly these arrays, whatever the name means today.
    `tick` is called between the images of an import and may raise to stop.
    """
    own = (datasets.c.tenant == tenant) & (datasets.c.name == name)
    version = datasets.c.digest == digest if digest else datasets.c.deleted_at.is_(None)
    newest = select(datasets).where(own, version).order_by(datasets.c.created_at.desc()).limit(1)
    with reading(bind) as conn:
        row = conn.execute(newest).mappings().one_or_none()
    if row is None and not digest:
        if name not in BUILTINS:
            raise NotFound(f"Dataset {name!r} not found.", field="dataset")
        row = ensure_builtin(bind, tenant, name, tick)
    try:
        data = open_dataset(digest or row["digest"], verify=True)
    except (NotFound, FileNotFoundError):
        raise InvalidDataset(
            f"Dataset {name!r} was deleted, and this training cannot continue without its images.",
            field="dataset",
            remedy="Import it again and start a new training.",
        ) from None
    return Source(data, row and row["licence"], row and row["attribution"])
