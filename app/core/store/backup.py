"""A backup: the rows of all tables and the files they refer to, in a folder that any database and blob store can take.

`manifest.json` names the release's schema and the tables; `tables/NAME.jsonl` has a row per line, all of one moment;
`blobs/` has the files and `blobs.jsonl` their SHA-256. A backup appears whole or not at all.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Connection, MetaData, Table, select, text

from app.core.errors import Conflict, InvalidRequest, StorageDamaged
from app.core.store import blobs, contents, integrity
from app.core.store.contents import Item
from app.core.store.database import encode_json, reading, transaction, upgrade
from app.core.store.tables import metadata

FORMAT = 1
LEFT_OUT = {"workers"}
"""Tables about running processes."""
PASSES = 5
"""How often the tables are read again because files were deleted meanwhile, as old checkpoints are."""
BATCH = 500
ROOTS = ("datasets", "models", "perturbations", "jobs", "uploads")
Tell = Callable[[str], None]


@dataclass
class Summary:
    """What a backup holds. `bad`: files that are missing or damaged, with the item that needs them."""

    rows: dict[str, int] = field(default_factory=dict)
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0
    bad: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Files that were taken from the backup that this one replaces, because the store's are damaged."""


# ---- write


def write(target: Path, tell: Tell = lambda _: None) -> Summary:
    """Writes a backup while the service runs; an older backup at `target` is replaced once the new one is whole."""
    started, target = time.monotonic(), target.absolute()
    if target.exists() and not (target / "manifest.json").is_file() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict(f"{target} exists and is no backup.", remedy="Choose a new folder, or one with a backup.")
    with blobs.storage_errors():
        target.parent.mkdir(parents=True, exist_ok=True)
        _forget_unfinished(target)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
        try:
            summary = _write(folder, target, tell)
            _replace(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    summary.seconds = round(time.monotonic() - started, 2)
    return summary


def _write(folder: Path, before: Path, tell: Tell) -> Summary:
    copied: dict[str, str] = {}
    for _ in range(PASSES):
        manifest = _dump(folder / "tables")
        wanted = _wanted(folder / "tables")
        _copy(wanted, folder / "blobs", copied, tell)
        bad = list(_bad(folder, copied))
        if all(_still(item, key) for item, key, _ in bad):
            break
    for key in [key for key in copied if not _is_wanted(key, wanted)]:
        (folder / "blobs" / key).unlink()
        del copied[key]
    summary = Summary(rows={name: table["rows"] for name, table in manifest["tables"].items()})
    for item, key, fault in bad:
        if _kept(item, key, before, folder, copied):
            summary.kept.append(f"{item}: {key}")
        else:
            summary.bad.append(f"{fault} {item}: {key}")
    sizes = {key: (folder / "blobs" / key).stat().st_size for key in sorted(copied)}
    lines = ({"key": key, "bytes": size, "sha256": copied[key]} for key, size in sizes.items())
    manifest["blobs"] = _write_lines(folder / "blobs.jsonl", lines)
    manifest |= {"bad": summary.bad}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    summary.files, summary.bytes = len(sizes), sum(sizes.values())
    return summary


def _dump(folder: Path) -> dict[str, Any]:
    """Writes the rows of all tables as they are at one moment; returns the manifest."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with reading() as conn:
        revision = conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        facts = {}
        for table in _tables(conn):
            rows = conn.execution_options(stream_results=True, yield_per=BATCH).execute(
                select(table).order_by(*table.primary_key)
            )
            facts[table.name] = _write_lines(folder / f"{table.name}.jsonl", map(dict, rows.mappings()))
        taken = time.time()
    return {"format": FORMAT, "schema": revision, "taken_at": taken, "tables": facts}


def _tables(conn: Connection) -> list[Table]:
    """The tables as the database has them, which may be those of another release, parents first."""
    found, ours = MetaData(), metadata.tables.keys() - LEFT_OUT
    found.reflect(conn, only=lambda name, _: name in ours)
    for table in found.tables.values():
        for column in table.columns:
            if isinstance(column.type, JSON) and column.nullable:
                column.type = JSON(none_as_null=True)
    return found.sorted_tables


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for row in rows:
            line = encode_json(row).encode() + b"\n"
            digest.update(line)
            file.write(line)
            count += 1
        file.flush()
        os.fsync(file.fileno())
    return {"rows": count, "sha256": digest.hexdigest()}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, file)


def _wanted(tables: Path) -> dict[str, set[str]]:
    """The second segments of the keys that the rows refer to, by the first."""
    wanted: dict[str, set[str]] = {root: set() for root in ROOTS}
    for kind in contents.KINDS:
        for row in _lines(tables / f"{kind}s.jsonl"):
            root, name = contents.prefix(kind, row).split("/")
            wanted[root].add(name)
            upload = row["spec"].get("upload") if kind == "job" and row["state"] in ("queued", "running") else None
            if isinstance(upload, str):
                wanted["uploads"].add(upload.split("/")[1])
    return wanted


def _is_wanted(key: str, wanted: dict[str, set[str]]) -> bool:
    root, name, *_ = key.split("/")
    return name in wanted[root]


def _copy(wanted: dict[str, set[str]], folder: Path, copied: dict[str, str], tell: Tell) -> None:
    """Copies the wanted files that are not in `copied` yet, and adds their SHA-256."""
    told, done = time.monotonic(), 0
    for root in ROOTS:
        for key, size in blobs.walk(root):
            if key in copied or not _is_wanted(key, wanted):
                continue
            try:
                copied[key] = _copy_file(blobs.chunks(key), folder / key)
            except FileNotFoundError:  # deleted meanwhile
                continue
            done += size
            if time.monotonic() - told > 5:
                told = time.monotonic()
                tell(f"{len(copied)} files, {done >> 20} MiB copied ...")


def _copy_file(pieces: Iterable[bytes], path: Path) -> str:
    """Writes and syncs a file; returns its SHA-256. Leaves none when `pieces` fails."""
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _bad(folder: Path, copied: dict[str, str]) -> Iterator[tuple[Item, str, str]]:
    """The files in the backup that are not what the rows in it say."""
    for kind, (_, make) in contents.KINDS.items():
        for row in _lines(folder / "tables" / f"{kind}s.jsonl"):
            if row.get("deleted_at"):
                continue
            item = make(row)
            for key, fault in item.faults(lambda key: _read(folder / "blobs" / key)).items():
                yield item, key, fault


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(blobs.CHUNK):
            yield data


def _still(item: Item, key: str) -> bool:
    """Whether the tables refer to that file still, so that it is lost rather than replaced."""
    now = item.again()
    return now is not None and key in now.files()


def _kept(item: Item, key: str, before: Path, folder: Path, copied: dict[str, str]) -> bool:
    """Takes a file from the older backup if it has the right one."""
    old, new = before / "blobs" / key, folder / "blobs" / key
    if not old.is_file():
        return False
    spare = new.with_name(new.name + ".spare")
    if new.exists():
        new.rename(spare)
    digest = _copy_file(_read(old), new)
    if key in item.faults(lambda key: _read(folder / "blobs" / key)):
        spare.rename(new) if spare.exists() else new.unlink()
        return False
    spare.unlink(missing_ok=True)
    copied[key] = digest
    return True


def _replace(folder: Path, target: Path) -> None:
    old = folder.with_name(folder.name + "-old")
    if target.exists():
        target.rename(old)
    folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _forget_unfinished(target: Path) -> None:
    """Deletes what backups that were killed more than a day ago left beside the target."""
    for folder in target.parent.glob(f".{target.name}-*"):
        if folder.stat().st_mtime < time.time() - 86400:
            shutil.rmtree(folder, ignore_errors=True)


# ---- read


def read(source: Path, after: Callable[[Connection], None], skip_damaged: bool = False) -> Summary:
    """Restores a backup into an empty database and a blob store. `after` runs in the transaction that writes the rows.

    Raises Conflict for a database with rows or a file with other bytes, StorageDamaged for a damaged backup (with
    `skip_damaged` only for damaged tables). The rows are written last, all at once: an interrupted restore is repeated.
    """
    started, manifest = time.monotonic(), _manifest(source)
    with transaction() as conn:
        _check_empty(conn)
    for name, facts in manifest["tables"].items():
        _check(source / "tables" / f"{name}.jsonl", facts["sha256"])
    _check(source / "blobs.jsonl", manifest["blobs"]["sha256"])
    summary = Summary(rows={name: facts["rows"] for name, facts in manifest["tables"].items()})
    for line in _lines(source / "blobs.jsonl"):
        if _restore_file(source / "blobs" / line["key"], line):
            summary.files, summary.bytes = summary.files + 1, summary.bytes + line["bytes"]
        else:
            summary.bad.append(line["key"])
    if summary.bad and not skip_damaged:
        raise StorageDamaged(
            f"The backup is damaged: {', '.join(summary.bad[:10])}{' ...' if len(summary.bad) > 10 else ''}.",
            remedy="Use another backup, or restore the rest with --skip-damaged.",
        )
    with transaction() as conn:
        _check_empty(conn)
        for table in reversed(_tables(conn)):
            table.drop(conn)
        conn.execute(text("DROP TABLE IF EXISTS workers"))
        conn.execute(text("DROP TABLE IF EXISTS alembic_version"))
        upgrade(conn, manifest["schema"])
        for table in _tables(conn):
            if table.name in manifest["tables"]:
                _insert(conn, table, _lines(source / "tables" / f"{table.name}.jsonl"))
        upgrade(conn)
        after(conn)
    summary.seconds = round(time.monotonic() - started, 2)
    return summary


def _manifest(source: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((source / "manifest.json").read_text())
        later = manifest["format"] > FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        raise InvalidRequest(
            f"{source} is no backup: it has no readable manifest.json.", remedy="Name the folder of `anamorph backup`."
        ) from None
    if later:
        raise InvalidRequest(f"{source} was written by a later release.", remedy="Update this one.")
    return manifest


def _check_empty(conn: Connection) -> None:
    """Raises Conflict for a database that has rows."""
    for table in _tables(conn):
        if conn.execute(select(*table.primary_key).limit(1)).first() is not None:
            raise Conflict(
                f"The database is not empty: it has rows in {table.name}. A restore overwrites nothing.",
                remedy="Restore into a new data folder (--data DIR) or a new database.",
            )


def _check(path: Path, sha256: str) -> None:
    try:
        if integrity.sha256_of(path) == sha256:
            return
    except OSError:
        pass
    raise StorageDamaged(f"The backup is damaged: {path.name} is not as it was written.", remedy="Use another backup.")


def _restore_file(path: Path, line: dict[str, Any]) -> bool:
    """Stores a file unless it is damaged. Raises Conflict if the store has other bytes under its key."""
    key, sha256 = line["key"], line["sha256"]
    try:
        if integrity.sha256_of(path) != sha256:
            return False
        blobs.put(key, path)
    except FileNotFoundError:
        return False
    except FileExistsError:
        if not integrity.Seal(key, sha256).matches(blobs.chunks(key)):
            raise Conflict(
                f"The blob store has other bytes under {key}. A restore overwrites nothing.",
                remedy="Restore into an empty blob store.",
            ) from None
    return True


def _insert(conn: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            conn.execute(table.insert(), batch)
            batch = []
    if batch:
        conn.execute(table.insert(), batch)
