"""The dataset of a job, by name, with its licence and attribution for the model card."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, select

from app.core.catalog.builtins import BUILTINS
from app.core.errors import InvalidDataset, NotFound
from app.core.store.database import reading
from app.core.store.tables import datasets
from workers.data import OpenDataset, ensure_builtin, open_dataset


@dataclass(frozen=True)
class Source:
    """`data` holds memory-mapped columns, which stay readable if the dataset is deleted meanwhile."""

    data: OpenDataset
    licence: str | None
    attribution: str | None

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for side in (self.data.train, self.data.validation) for array in side.values())


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
