"""The kill drill: a whole service under real jobs, its processes killed and frozen; then its history is judged."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import func, select, text

from app.core.errors import AnamorphError
from app.core.jobs import state
from app.core.store.database import make_engine, migrate, reading, transaction
from app.core.store.tables import jobs
from tests.servers import Postgres, Valkey
from tests.system.drill import history as histories
from tests.system.drill.checker import Verdict, judge
from tests.system.drill.client import KINDS, RECIPES, Clients, statuses
from tests.system.drill.history import NOTES, Excuse, read_notes
from tests.system.drill.stage import CLOCK_TABLE
from tests.system.processes import alive, command, descendants

ROOT = Path(__file__).parents[3]
CELERY = ["-m", "celery", "-A", "tests.system.drill.worker", "worker", "--pool=threads", "-c", "2"]
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning"]
JOB = "tests.system.drill.job"
GRACE_SECONDS = 15
"""How long a process that was frozen, or whose lease a jump of the clock ended, may compute before it notices."""


@dataclass(frozen=True)
class Plan:
    jobs: int = 8
    job_kills: int = 2
    worker_kills: int = 2
    inference_kills: int = 0
    broker_kills: int = 1
    front_kills: int = 1
    database_kills: int = 0
    freezes: int = 0
    clock_jumps: int = 0
    all_at_once: int = 0
    workers: int = 2
    clients: int = 6
    recipes: int = len(RECIPES)  # how many different trainings; with none, no model and no calls
    kinds: tuple[str, ...] = KINDS  # of the orders
    lease_seconds: float = 15
    step_seconds: float = 0.05
    seconds: float = 3600  # of the play after a calm beginning; what has not ended then is counted as that
    stall_seconds: float = 300  # or when nothing has moved for so long
    seed: int = 1
    bug: str = ""  # a name in `plants.PLANTS`
    deaf: bool = False  # jobs that lose their lease do not notice, so that only fences stop them


@dataclass
class Report:
    """What happened, and the judgement on it."""

    verdict: Verdict
    seconds: float
    blows: Counter
    answers: Counter
    counts: Counter = field(default_factory=Counter)

    def rows(self) -> list[tuple[str, object]]:
        """The table, as (what, number)."""
        kinds = self.verdict.kinds()
        rows: list[tuple[str, object]] = [
            ("accepted", self.verdict.counts["jobs"]),
            ("ended", self.verdict.counts["ended"]),
        ]
        rows += [("not ended in time", len(self.verdict.not_ended))]
        names = ("lost", "double", "illegal claim", "concurrent", "zombie write", "zombie checkpoint")
        rows += [(name, kinds.get(name, 0)) for name in names]
        rows += [(name, count) for name, count in sorted(kinds.items()) if name not in names]
        shown = ("jobs", "ended")
        rows += [(name, count) for name, count in sorted(self.verdict.counts.items()) if name not in shown]
        rows += [(name, count) for name, count in sorted((self.blows + self.counts).items())]
        rows += [(f"{what}: {status}", count) for what, status, count in statuses(self.answers)]
        return [*rows, ("seconds", round(self.seconds))]


class Drill:
    def __init__(self, plan: Plan, folder: Path, database_url: str, database: Postgres | None = None):
        self.plan, self.folder, self.database = plan, folder, database
        self.random = random.Random(plan.seed)
        self.engine = make_engine(database_url)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.set_inheritable(True)
        port = self.listener.getsockname()[1]
        self.environment = os.environ | {
            "DATABASE_URL": database_url,
            "BLOBS_URL": f"file://{folder}/blobs",
            "ANAMORPH_DATA_DIR": str(folder),
            "ANAMORPH_PORT": str(port),
            "ANAMORPH_LEASE_SECONDS": str(plan.lease_seconds),
            "ANAMORPH_SWEEP_SECONDS": "0.5",
            "ANAMORPH_CHECKPOINT_SECONDS": "1",
            "ANAMORPH_MAX_FAILURES": "50",
            "ANAMORPH_JOB_NICENESS": "0",
            "ANAMORPH_TRAIN_THREADS": "1",
            "ANAMORPH_INFER_THREADS": "1",
            "ANAMORPH_MAX_JOBS_PER_TENANT": "100000",
            "ANAMORPH_MAX_RUNNING_JOBS_PER_TENANT": "100",
            "ANAMORPH_LOG_LEVEL": "info",
            "DRILL_FOLDER": str(folder),
            "DRILL_CLOCK": "1" if plan.clock_jumps else "",
            "DRILL_STEP_SECONDS": str(plan.step_seconds),
            "PYTHONPATH": str(ROOT),
        }
        self.blows: Counter = Counter()
        self.excuses: list[Excuse] = []
        self.clients = Clients(f"http://127.0.0.1:{port}", plan.jobs, plan.clients, plan.seed, plan.recipes, plan.kinds)

    # ---- the cast

    def spawn(self, *arguments: str, **options) -> subprocess.Popen:
        environment = self.environment
        if self.plan.clock_jumps and self.random.random() < 0.3:
            self.blows["processes with a wrong wall clock"] += 1
            environment = environment | {"DRILL_TIME_SHIFT": str(self.random.choice([-400, -35, 35, 400]))}
        with open(self.folder / "processes.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=log, stderr=log,
                start_new_session=True, **options,
            )  # fmt: skip

    def worker(self) -> subprocess.Popen:
        return self.spawn(*CELERY, "-Q", ",".join(state.QUEUES), *QUIET)

    def start_inference(self) -> None:
        self.inference = self.spawn(*CELERY, "-Q", "infer", *QUIET)

    def start_front(self) -> None:
        descriptor = self.listener.fileno()
        arguments = ("-m", "tests.system.drill.front", "web", "--fd", str(descriptor))
        self.front = self.spawn(*arguments, pass_fds=(descriptor,))

    def parts(self) -> list[subprocess.Popen]:
        return [self.front, self.inference, *self.workers]

    # ---- the play

    def run(self) -> Report:
        started = time.monotonic()
        migrate(self.engine)
        if self.plan.clock_jumps:
            with transaction(self.engine) as conn:
                conn.execute(text(f"CREATE TABLE {CLOCK_TABLE} (shift DOUBLE PRECISION NOT NULL)"))
                conn.execute(text(f"INSERT INTO {CLOCK_TABLE} VALUES (0)"))
        self.broker = Valkey(self.folder)
        self.environment["BROKER_URL"] = self.broker.url
        self.workers = [self.worker() for _ in range(self.plan.workers)]
        self.start_inference()
        self.start_front()
        try:
            calm = self.clients.prepare()
            if self.plan.bug or self.plan.deaf:
                self.environment |= {"DRILL_BUG": self.plan.bug, "DRILL_DEAF": "1" if self.plan.deaf else ""}
                self.start_again()
            self.clients.start()
            self.play(time.monotonic() + self.plan.seconds)
            self.clients.stop()
        finally:
            self.close()
        report = self.judge(calm, time.monotonic() - started)
        self.engine.dispose()
        return report

    def play(self, end: float) -> None:
        """Strikes as jobs end, so that a slow machine is not struck more often; ends when nothing moves any more."""
        blows = self.deck()
        moved, seen = time.monotonic(), None
        struck = 0
        while time.monotonic() < end and not (self.clients.all_ended() and struck == len(blows)):
            now = (self.moves(), struck)
            if now != seen:
                moved, seen = time.monotonic(), now
            if time.monotonic() - moved > self.plan.stall_seconds:
                self.blows["nothing moved any more"] += 1
                return
            due = (self.clients.ended + 1) * len(blows) >= struck * self.plan.jobs
            if struck < len(blows) and due:
                blows[struck]()
                struck += 1
            time.sleep(self.random.uniform(0.3, 1.2))

    def deck(self) -> list[Callable[[], None]]:
        plan = self.plan
        blows = [self.kill_job] * plan.job_kills + [self.kill_worker] * plan.worker_kills
        blows += [self.kill_inference] * plan.inference_kills + [self.kill_broker] * plan.broker_kills
        blows += [self.kill_front] * plan.front_kills + [self.kill_database] * plan.database_kills
        blows += [self.freeze_worker] * plan.freezes + [self.jump] * plan.clock_jumps
        blows += [self.kill_everything] * plan.all_at_once
        self.random.shuffle(blows)
        return blows

    def moves(self) -> tuple[int, int] | None:
        """A number that changes whenever anything happens to a job."""
        try:
            with reading(self.engine) as conn:
                return conn.execute(select(func.sum(jobs.c.last_event), func.count())).one()
        except AnamorphError:
            return None

    # ---- the blows

    def jobs_of(self, worker: subprocess.Popen) -> dict[psutil.Process, str]:
        """The processes of a worker's jobs and what these are; spare processes that have no job are left out."""
        children = [(child, command(child)) for child in descendants(worker.pid)]
        began = {note.pid: note.job for note in read_notes(self.folder / NOTES) if note.what == "began"}
        found = {child: began.get(child.pid, line.split()[-1]) for child, line in children if JOB in line}
        return {child: job for child, job in found.items() if job != "--spare"}

    def job_processes(self) -> list[psutil.Process]:
        return [process for worker in self.workers for process in self.jobs_of(worker)]

    def kill_job(self) -> None:
        """One job's process alone, when there is one."""
        for _ in range(100):
            if found := self.job_processes():
                time.sleep(self.random.uniform(0, 1.5))
                for process in alive([self.random.choice(found)]):
                    process.kill()
                    self.blows["kills: job"] += 1
                    return
            time.sleep(0.2)

    def kill_worker(self) -> None:
        """The whole group at once, or the worker alone (its jobs must die with it)."""
        index = self.random.randrange(len(self.workers))
        self.kill_group(self.workers[index], self.random.random() < 0.6)
        self.workers[index] = self.worker()
        self.blows["kills: worker"] += 1

    def kill_group(self, process: subprocess.Popen, whole: bool = True) -> None:
        os.killpg(process.pid, signal.SIGKILL) if whole else process.kill()
        process.wait()

    def kill_inference(self) -> None:
        self.kill_group(self.inference)
        self.start_inference()
        self.blows["kills: inference"] += 1

    def kill_broker(self) -> None:
        self.broker.kill()
        time.sleep(self.random.uniform(0, 2))
        self.broker.start()
        self.blows["kills: broker"] += 1

    def kill_front(self) -> None:
        self.kill_group(self.front)
        self.start_front()
        self.blows["kills: front"] += 1

    def kill_database(self) -> None:
        """PostgreSQL with all its processes. SQLite has none: a process dies that has held its write lock for long."""
        if self.database is not None:
            self.database.kill()
            time.sleep(self.random.uniform(0, 2))
            self.database.start()
        else:
            program = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], timeout=60)"
            program += "; c.execute('BEGIN IMMEDIATE'); c.execute('UPDATE jobs SET rings = rings'); time.sleep(60)"
            holder = subprocess.Popen([sys.executable, "-c", program, self.engine.url.database])
            time.sleep(self.random.uniform(3, 14))
            holder.kill()
            holder.wait()
        self.blows["kills: database"] += 1

    def freeze_worker(self) -> None:
        """Until others have its jobs; the jobs' processes wake up before the worker that would kill them: zombies."""
        worker = self.computing() or self.random.choice(self.workers)
        start = time.monotonic()
        os.killpg(worker.pid, signal.SIGSTOP)
        children = self.jobs_of(worker)
        ids = [*children.values()]
        before = self.begun(ids)
        time.sleep(self.plan.lease_seconds * 1.2)
        end = time.monotonic() + self.plan.lease_seconds * 3
        while children and self.begun(ids) <= before and time.monotonic() < end:
            time.sleep(0.3)
        for child in alive(children):
            child.resume()
        time.sleep(2)
        os.killpg(worker.pid, signal.SIGCONT)
        self.excuses.append(Excuse(start, time.monotonic() + GRACE_SECONDS))
        self.blows["freezes"] += 1

    def computing(self) -> subprocess.Popen | None:
        """A worker one of whose jobs has taken a step just now; waits for one for a while."""
        for _ in range(100):
            now = time.monotonic()
            busy = {
                note.pid for note in read_notes(self.folder / NOTES) if note.what == "computing" and now - note.at < 1
            }
            for worker in self.workers:
                if any(child.pid in busy for child in descendants(worker.pid)):
                    return worker
            time.sleep(0.3)
        return None

    def begun(self, ids: list[str]) -> int:
        """How many attempts at these jobs have begun, by what their processes noted."""
        return sum(note.what == "began" and note.job in ids for note in read_notes(self.folder / NOTES))

    def jump(self) -> None:
        """Puts the clock of the database off by more than a lease, forwards or back to the true time."""
        start = time.monotonic()
        try:
            with transaction(self.engine) as conn:
                shift = conn.execute(text(f"SELECT shift FROM {CLOCK_TABLE}")).scalar_one()
                new = self.plan.lease_seconds * 2 if shift == 0 else 0
                conn.execute(text(f"UPDATE {CLOCK_TABLE} SET shift = {new}"))
        except AnamorphError:
            return
        self.excuses.append(Excuse(start, time.monotonic() + GRACE_SECONDS))
        self.blows["clock jumps"] += 1

    def kill_everything(self) -> None:
        """Like a power cut: no process of the service is left."""
        if self.database is not None:
            self.database.kill()
        self.start_again()
        self.blows["kills: everything at once"] += 1

    def start_again(self) -> None:
        for process in self.parts():
            os.killpg(process.pid, signal.SIGKILL)
        self.broker.kill()
        for process in self.parts():
            process.wait()
        if self.database is not None:
            self.database.start()
        self.broker.start()
        self.workers = [self.worker() for _ in self.workers]
        self.start_inference()
        self.start_front()

    def close(self) -> None:
        """A kind end: TERM, so that the drill also sees workers stop in order."""
        self.clients.stopping.set()
        for process in self.parts():
            process.terminate()
        for process in self.parts():
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                self.blows["processes that did not stop"] += 1
                self.kill_group(process)
        self.broker.stop()
        self.listener.close()

    # ---- the judgement

    def judge(self, calm: dict[str, dict], seconds: float) -> Report:
        history = histories.read(self.engine, self.folder)
        history.reference = {
            recipe: (job["result"]["version"], history.curves.get(job["id"], {})) for recipe, job in calm.items()
        }
        for job_id in self.clients.prepared:
            prepared = history.jobs.pop(job_id)
            history.jobs.pop((prepared.result or {}).get("measurement", {}).get("job"), None)
        history.orders, history.excuses = self.clients.orders, self.excuses
        history.answers, history.unexpected = self.clients.answers.counts, self.clients.answers.unexpected
        if self.plan.deaf:  # that they compute is the plan; what they write is judged
            history.excuses = [Excuse(0, float("inf"))]
        history.steady_clock = not self.plan.clock_jumps
        history.damaged = histories.Blobs(self.folder / "blobs").damage
        verdict = judge(history)
        log = (self.folder / "processes.log").read_bytes()
        fenced = Counter(
            {"attempts fenced": log.count(b"fenced"), "attempts that saw their lease lost": log.count(b"lease_lost")}
        )
        return Report(verdict, seconds, self.blows, history.answers, fenced)
