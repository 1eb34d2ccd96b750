"""What a drill leaves behind: the rows and events of jobs, notes of their processes, and what clients were told."""

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select

from app.core.store.blobs import FolderStore
from app.core.store.database import reading
from app.core.store.tables import job_events, job_metrics, jobs

NOTES = "notes.log"


@dataclass
class Job:
    """The row of a job at the end."""

    id: str
    kind: str = "training"
    state: str = "succeeded"
    attempt: int = 1
    checkpoint: dict[str, Any] | None = None
    deadline: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


@dataclass
class Event:
    job: str
    seq: int
    kind: str
    attempt: int = 0
    writer: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    at: float = 0.0


@dataclass(frozen=True)
class Note:
    """What a process of a job says about itself, whatever the database was told. `at`: the monotonic clock."""

    at: float
    what: str  # began | computing | accepted | fenced | pointer
    job: str
    attempt: int
    pid: int = 0
    data: Any = None


@dataclass
class Order:
    """A request for a job, sent until it was answered, perhaps more often: always under the same key."""

    number: int
    kind: str
    key: str
    recipe: str | None = None  # orders of the same recipe must give the same model
    ids: set[str] = field(default_factory=set)  # told by answers
    canceled: bool = False  # a client asked for it
    states: list[str] = field(default_factory=list)  # as told to a client, in order, without repetitions


@dataclass(frozen=True)
class Excuse:
    """From `start` to `end` two processes of one job may run: one of them was frozen, or a clock jumped."""

    start: float
    end: float


@dataclass
class History:
    """Everything the checker looks at."""

    jobs: dict[str, Job] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    curves: dict[str, dict[int, Any]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    excuses: list[Excuse] = field(default_factory=list)
    answers: Counter = field(default_factory=Counter)  # (what, status) -> how often
    unexpected: list[str] = field(default_factory=list)  # answers that no client should get
    reference: dict[str, tuple[str, dict[int, Any]]] = field(default_factory=dict)  # recipe -> version, curve
    steady_clock: bool = True  # the clock of the database was never put back
    damaged: Callable[[str, str | None], str | None] = lambda key, sha256: None  # what is wrong with a blob


def read(engine: Engine, folder: Path) -> History:
    """The jobs, events, curves and notes of a drill in `folder`."""
    history = History(notes=sorted(read_notes(folder / NOTES), key=lambda note: note.at))
    with reading(engine) as conn:
        for row in conn.execute(select(*(jobs.c[name] for name in Job.__dataclass_fields__))).mappings():
            history.jobs[row["id"]] = Job(**row)
        columns = [
            job_events.c.job_id.label("job"),
            *(job_events.c[n] for n in Event.__dataclass_fields__ if n != "job"),
        ]
        events = defaultdict(list)
        for row in conn.execute(select(*columns).order_by(job_events.c.job_id, job_events.c.seq)).mappings():
            events[row["job"]].append(Event(**row))
        curves = defaultdict(dict)
        for row in conn.execute(select(job_metrics.c.job_id, job_metrics.c.images, job_metrics.c["values"])):
            curves[row[0]][row[1]] = row[2]
    history.events, history.curves = dict(events), dict(curves)
    return history


def note(what: str, job: str, attempt: int, data: Any = None) -> None:
    """Appends a note to the file in DRILL_FOLDER; lines of several processes do not mix."""
    line = json.dumps([time.monotonic(), what, job, attempt, os.getpid(), data]) + "\n"
    handle = os.open(Path(os.environ["DRILL_FOLDER"]) / NOTES, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def read_notes(file: Path) -> Iterator[Note]:
    if not file.exists():
        return
    for line in file.read_text().splitlines():
        try:
            yield Note(*json.loads(line))
        except ValueError:  # the writer was killed in the middle
            continue


def entries(ref: Any) -> Iterator[tuple[str, str | None]]:
    """(key, sha256) of every blob that a checkpoint's reference names, at any depth."""
    if isinstance(ref, dict):
        if isinstance(ref.get("key"), str):
            yield ref["key"], ref.get("sha256")
        ref = list(ref.values())
    if isinstance(ref, list):
        for item in ref:
            yield from entries(item)


class Blobs:
    """Looks at the files of a blob store directly."""

    def __init__(self, folder: Path):
        self.store = FolderStore(folder)

    def damage(self, key: str, sha256: str | None) -> str | None:
        """What is wrong with a blob; None if it is there with these bytes."""
        if not self.store.exists(key):
            return "is not there"
        if sha256 and hashlib.sha256(self.store.get(key)).hexdigest() != sha256:
            return "has other bytes"
        return None
