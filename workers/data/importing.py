"""Imports datasets, from rows to the row in the table: uploads, and built-in ones on demand."""

import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert
from sqlalchemy.exc import IntegrityError

from app.core.catalog.builtins import BUILTINS
from app.core.errors import Conflict, InvalidDataset, NotFound, Unavailable
from app.core.jobs import cleanup
from app.core.store import blobs
from app.core.store.database import new_id, now, reading, transaction
from app.core.store.datasets import find
from app.core.store.tables import datasets
from workers.data.builtin_rows import BuiltinSource
from workers.data.npz_rows import NpzSource
from workers.data.publish import Published, publish
from workers.data.rows import Options, Report, Source
from workers.data.table import Table
from workers.data.zip_rows import ZipSource

SOURCES = {"zip": ZipSource, "npz": NpzSource}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Origin:
    """Where a dataset came from ("upload", "builtin:ID" or "derived:DATASET"), with its licence and attribution."""

    source: str
    licence: str | None = None
    attribution: str | None = None


def built_in(builtin: str) -> Origin:
    about = BUILTINS[builtin]
    return Origin(f"builtin:{builtin}", about.licence, about.attribution)


def open_upload(spec: dict[str, Any], report: Report) -> Source:
    """The uploaded file of a job's `spec` as a source of rows. Raises InvalidDataset."""
    if spec.get("format") not in SOURCES:
        raise InvalidDataset(f"format must be zip or npz; you sent {spec.get('format')!r}.", field="format")
    try:
        path = blobs.path(spec["upload"])
    except FileNotFoundError:
        raise InvalidDataset("The uploaded file no longer exists.", remedy="Upload it again.") from None
    return SOURCES[spec["format"]](path, Options.read(spec), report)


def read_source(
    source: Source, options: Options, report: Report, progress: Progress, tick: Callable[[], None]
) -> Published:
    """Stores the rows of a source as a dataset. `tick` is called between rows and may raise to stop."""
    with (
        closing(source),
        tempfile.TemporaryDirectory(prefix=cleanup.IMPORT_FOLDER) as folder,
        closing(Table(Path(folder), options, source.classes, report)) as table,
    ):
        for count, row in enumerate(source.rows(), start=1):
            tick()
            if row is not None:
                table.add(row)
            progress(min(count, source.total), source.total)
        return publish(table, source.layout, Path(folder), report, tick, source.twins)


def ensure_builtin(
    bind: Engine | None, tenant: str, builtin: str, tick: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The row of a built-in dataset for a tenant; imports the dataset first if the tenant does not have it yet."""
    with reading(bind) as conn:
        row = find(conn, tenant, builtin)
    if row is None:
        source = BuiltinSource(builtin)
        published = read_source(source, Options(), Report(), lambda *_: None, tick)
        try:
            with transaction(bind) as conn:
                register(conn, tenant, builtin, published, built_in(builtin))
        except Conflict:
            pass  # another worker imported it first
        with reading(bind) as conn:
            row = find(conn, tenant, builtin)
    if row is None:
        raise NotFound(f"Dataset {builtin!r} was deleted during its import.", remedy="Try again.")
    return row


def register(conn: Connection, tenant: str, name: str, published: Published, origin: Origin) -> None:
    """Writes the row of a stored dataset. Raises Conflict for a name in use."""
    cleanup.hold(conn, published.digest)
    if published.existed and not blobs.exists(f"datasets/{published.digest}/facts.json"):
        raise Unavailable("The arrays of an equal dataset were deleted during the import.", remedy="Import it again.")
    row = {
        "id": new_id(),
        "tenant": tenant,
        "name": name,
        "digest": published.digest,
        "layout": published.facts["layout"],
        "facts": published.facts,
        **asdict(origin),
        "bytes": published.bytes,
        "created_at": now(conn),
    }
    try:
        conn.execute(insert(datasets).values(row))
    except IntegrityError as error:
        raise name_conflict(name) from error


def name_conflict(name: str) -> Conflict:
    return Conflict(f"Dataset {name!r} already exists.", field="name", remedy="Choose another name, or delete it.")
