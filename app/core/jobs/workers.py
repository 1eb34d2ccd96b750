"""The live workers: each updates its row every few seconds."""

import os
import socket
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, delete, select

from app.core.store.database import clock, upsert
from app.core.store.tables import workers

BEAT_SECONDS = 3
FRESH_SECONDS = 15
GONE_SECONDS = 3600
_LONG_AGO = {"started_at": 0.0, "seen_at": 0.0}


def worker_id() -> str:
    """The name of this process in the tables workers and jobs."""
    return f"{socket.gethostname()}:{os.getpid()}"[:128]


def beat(
    conn: Connection,
    worker: str,
    queues: Iterable[str],
    device: str | None = None,
    models: Iterable[str] = (),
    devices: list[dict[str, Any]] | None = None,
) -> None:
    """Updates the row of a live worker. `devices`: those of its jobs, each with the ids of the jobs that use it."""
    row = {"id": worker, "host": socket.gethostname(), "pid": os.getpid(), "queues": sorted(queues), "device": device}
    row |= {"devices": devices}
    before = conn.execute(select(workers.c.started_at).where(workers.c.id == worker)).scalar_one_or_none()
    times = {"started_at": clock() if before is None else before, "seen_at": clock()}
    upsert(conn, workers, row | times | {"models": list(models)}, ["id"])


def leave(conn: Connection, worker: str) -> None:
    conn.execute(delete(workers).where(workers.c.id == worker))


def fresh(conn: Connection, seconds: float = FRESH_SECONDS) -> list[dict[str, Any]]:
    """The workers that updated their row within `seconds`."""
    rows = conn.execute(select(workers).where(workers.c.seen_at > clock() - seconds).order_by(workers.c.id))
    return [dict(row) for row in rows.mappings()]


def most_devices(conn: Connection) -> int | None:
    """Devices of the live worker for trainings that has most; None if there is no such worker."""
    return max((len(row["devices"] or [None]) for row in fresh(conn) if "train" in row["queues"]), default=None)


def write_probe(conn: Connection) -> None:
    """Writes a row that counts as no worker, to see whether the database can be written."""
    upsert(conn, workers, {"id": "probe", "host": "", "pid": 0, "queues": [], "models": []} | _LONG_AGO, ["id"])


def forget_gone(conn: Connection) -> None:
    gone = workers.c.seen_at < clock() - GONE_SECONDS
    conn.execute(select(workers.c.id).where(gone).order_by(workers.c.id).with_for_update()).all()
    conn.execute(delete(workers).where(gone))
