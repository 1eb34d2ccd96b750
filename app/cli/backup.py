"""`anamorph backup` and `anamorph restore`: all rows and files of a service, into a folder and back."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Connection, select, update

from app.cli.serve import Data, choose, open_data
from app.cli.service_lock import CannotStart, claimed
from app.core.jobs import state
from app.core.settings import settings
from app.core.store import backup as backups
from app.core.store.database import sqlite_file
from app.core.store.tables import jobs

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def backup(
    target: Annotated[Path, typer.Argument(help="Folder to write; an older backup there is replaced.")],
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Back up the database and all files that it refers to. The service may run meanwhile."""
    choose(ANAMORPH_DATA_DIR=data)
    file = sqlite_file()
    if file and not file.exists():
        raise CannotStart(f"There is no database at {file}. Name the data folder: --data DIR.")
    summary = backups.write(target, lambda sentence: typer.echo(sentence, err=True))
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
    else:
        for line in summary.kept:
            typer.echo(f"damaged in the store, kept from the backup before: {line}")
        for line in summary.bad:
            typer.echo(f"not backed up as it should be: {line}")
        typer.echo(f"{told(summary)} to {target}")
        if summary.bad or summary.kept:
            typer.echo("`anamorph doctor --blobs --heal` repairs what it can.")
    raise typer.Exit(1 if summary.bad or summary.kept else 0)


def restore(
    source: Annotated[Path, typer.Argument(help="Folder of `anamorph backup`.")],
    data: Data = None,
    skip_damaged: Annotated[
        bool, typer.Option("--skip-damaged", help="Restore the rest of a backup that has damaged files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty data folder, or an empty database and blob store. Nothing is overwritten.

    Jobs that were running wait in the queue again and continue from their last checkpoint.
    """
    choose(ANAMORPH_DATA_DIR=data)
    with claimed(settings().data_dir) if sqlite_file() else contextlib.nullcontext():
        open_data(settings())
        summary = backups.read(source, requeue, skip_damaged)
    if as_json:
        typer.echo(json.dumps(asdict(summary)))
    else:
        for key in summary.bad:
            typer.echo(f"damaged in the backup, left out: {key}")
        typer.echo(f"{told(summary)} from {source}")
    raise typer.Exit(1 if summary.bad else 0)


def requeue(conn: Connection) -> None:
    """Puts the jobs that were running back into the queue, and has all that wait announced to the workers again."""
    for job in conn.execute(select(jobs.c.id, jobs.c.token).where(jobs.c.state == "running")).all():
        state.release(conn, job.id, job.token)
    conn.execute(update(jobs).where(jobs.c.state == "queued").values(published_at=None))


def told(summary: backups.Summary) -> str:
    counts = ", ".join(
        f"{summary.rows.get(name, 0)} {name}" for name in ("models", "datasets", "perturbations", "jobs")
    )
    return f"{counts}; {summary.files} files, {summary.bytes / 2**20:.1f} MiB in {summary.seconds} s"
