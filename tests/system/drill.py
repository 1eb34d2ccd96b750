"""The kill drill: real workers, broker and front end are killed and frozen under jobs; then the history is checked."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import func, select

from app.core.store.database import make_engine, migrate, reading
from app.core.store.tables import idempotency, job_events, job_metrics, jobs
from tests.servers import Valkey
from tests.system.drill_job import CHECKPOINT_STEPS, chain

ROOT = Path(__file__).parents[2]
CELERY = ["-m", "celery", "-A", "tests.system.drill_worker", "worker", "--pool=threads", "-c", "2", "-Q", "train,light"]
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning"]


@dataclass(frozen=True)
class Plan:
    jobs: int = 40
    worker_kills: int = 10
    broker_kills: int = 1
    front_kills: int = 1
    freezes: int = 0
    workers: int = 2
    lease_seconds: float = 8  # a job's process must start within it, also on a busy machine
    steps: int = 24
    step_seconds: float = 0.06
    pause_seconds: float = 2  # mean time between two blows
    limit_seconds: float = 240
    seed: int = 1


@dataclass
class Report:
    """What happened and what is wrong with it."""

    seconds: float = 0
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Drill:
    def __init__(self, plan: Plan, folder: Path, database_url: str):
        self.plan, self.folder = plan, folder
        self.random = random.Random(plan.seed)
        self.environment = os.environ | {
            "DATABASE_URL": database_url,
            "BLOBS_URL": f"file://{folder}/blobs",
            "ANAMORPH_DATA_DIR": str(folder),
            "ANAMORPH_LEASE_SECONDS": str(plan.lease_seconds),
            "ANAMORPH_SWEEP_SECONDS": "0.5",
            "ANAMORPH_MAX_FAILURES": "20",
            "ANAMORPH_LOG_LEVEL": "info",
            "DRILL_FOLDER": str(folder),
            "PYTHONPATH": str(ROOT),
        }
        self.engine = make_engine(database_url)
        self.counts: Counter = Counter()
        self.workers: list[subprocess.Popen] = []
        self.promised: list[tuple[int, str]] = []

    # ---- the cast

    def spawn(self, *arguments: str, **options) -> subprocess.Popen:
        with open(self.folder / "processes.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment,
                stderr=log,
                start_new_session=True,
                **({"stdout": log} | options),
            )

    def worker(self) -> subprocess.Popen:
        return self.spawn(*CELERY, *QUIET)

    def start_front(self) -> None:
        """Its promises go to a file, which outlives it."""
        numbers = map(str, (self.plan.jobs, self.plan.steps, self.plan.step_seconds))
        with open(self.folder / "promises.log", "ab") as promises:
            self.front = self.spawn("-m", "tests.system.drill_front", *numbers, stdout=promises)

    # ---- the play

    def run(self) -> Report:
        started = time.monotonic()
        migrate(self.engine)
        self.broker = Valkey(self.folder)
        self.environment["BROKER_URL"] = self.broker.url
        self.workers = [self.worker() for _ in range(self.plan.workers)]
        self.start_front()
        try:
            self.play(started + self.plan.limit_seconds)
        finally:
            self.close()
        report = self.check()
        report.seconds = time.monotonic() - started
        self.engine.dispose()
        return report

    def play(self, end: float) -> None:
        blows = [self.kill_worker] * self.plan.worker_kills + [self.kill_broker] * self.plan.broker_kills
        blows += [self.kill_front] * self.plan.front_kills + [self.freeze_worker] * self.plan.freezes
        self.random.shuffle(blows)
        if self.plan.front_kills:
            blows.remove(self.kill_front)
            blows.append(self.kill_front)  # the first blow comes while jobs are still being accepted
            time.sleep(1.5)
        while time.monotonic() < end and (blows or not self.all_ended()):
            if blows:
                blows.pop()()
            time.sleep(self.random.uniform(0.4, 1.6) * self.plan.pause_seconds if blows else 0.5)

    def all_ended(self) -> bool:
        with reading(self.engine) as conn:
            ended = jobs.c.state.in_(("succeeded", "failed", "canceled"))
            return conn.execute(select(func.count()).where(ended)).scalar_one() >= self.plan.jobs

    def kill_worker(self) -> None:
        """The whole group at once, the worker alone (its jobs must die with it), or one job's process."""
        index = self.random.randrange(len(self.workers))
        worker = self.workers[index]
        how = self.random.choice(["group", "group", "alone"])
        self.counts[f"worker kills ({how})"] += 1
        os.killpg(worker.pid, signal.SIGKILL) if how == "group" else worker.kill()
        worker.wait()
        self.workers[index] = self.worker()

    def kill_broker(self) -> None:
        self.counts["broker kills"] += 1
        self.broker.kill()
        time.sleep(self.random.uniform(0, 2))
        self.broker.start()

    def kill_front(self) -> None:
        self.counts["front end kills"] += 1
        self.front.kill()
        self.front.wait()
        self.start_front()

    def freeze_worker(self) -> None:
        """Longer than a lease: the sleeper's jobs go to others, and it wakes up as a zombie."""
        self.counts["freezes"] += 1
        worker = self.random.choice(self.workers)
        os.killpg(worker.pid, signal.SIGSTOP)
        time.sleep(self.plan.lease_seconds * 1.6)
        os.killpg(worker.pid, signal.SIGCONT)

    def close(self) -> None:
        """A kind end: TERM, so that the drill also sees workers stop in order."""
        processes = [self.front, *self.workers]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                self.counts["processes that did not stop"] += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.broker.stop()

    # ---- the judgement

    def check(self) -> Report:
        report = Report(counts=self.counts)
        with reading(self.engine) as conn:
            rows = conn.execute(select(jobs)).all()
            events = conn.execute(select(job_events).order_by(job_events.c.job_id, job_events.c.seq)).all()
            keys = conn.execute(select(idempotency.c.key, idempotency.c.job_id)).all()
            points = conn.execute(select(job_metrics.c.job_id, job_metrics.c.images)).all()
        self.check_promises(report, rows, keys)
        for row in rows:
            self.check_job(report, row, [event for event in events if event.job_id == row.id])
        self.check_curves(report, rows, points)
        self.check_steps(report)
        report.counts["jobs"] = len(rows)
        report.counts["attempts"] = sum(row.attempt for row in rows)
        report.counts["leases expired"] = sum(event.data.get("why") == "worker-lost" for event in events)
        report.counts["zombie writes fenced"] = self.logged(b"fenced") + self.logged(b"lease_lost")
        return report

    def check_promises(self, report: Report, rows, keys) -> None:
        """What was promised is there, under one key, once."""
        lines = (self.folder / "promises.log").read_text().splitlines()
        promised = {tuple(line.split()) for line in lines if line.count(" ") == 1}
        if {(f"job-{number}", job_id) for number, job_id in promised} != set(map(tuple, keys)):
            report.faults.append("a promise and its idempotency key disagree")
        if {job_id for _, job_id in promised} != {row.id for row in rows} or len(rows) != self.plan.jobs:
            report.faults.append(f"{len(promised)} promises, {len(rows)} jobs, {self.plan.jobs} wanted")

    def check_job(self, report: Report, row, events) -> None:
        right = chain(row.spec["seed"], row.spec["steps"])
        if row.state != "succeeded" or row.result != {"value": right}:
            report.faults.append(f"{row.id} is {row.state} with {row.result or row.error}")
        if [event.seq for event in events] != list(range(1, len(events) + 1)):
            report.faults.append(f"{row.id} has a gap in its events")
        if sum(event.kind == "succeeded" for event in events) != 1 or events[-1].kind != "succeeded":
            report.faults.append(f"{row.id} did not succeed exactly once, at the end")
        attempts = [event.attempt for event in events]
        if attempts != sorted(attempts):
            report.faults.append(f"{row.id} has an event of an attempt after the next one began")
        starts = [event.attempt for event in events if event.kind == "running"]
        if starts != list(range(1, row.attempt + 1)):
            report.faults.append(f"{row.id} started attempts {starts} of {row.attempt}")

    def check_curves(self, report: Report, rows, points) -> None:
        """Every checkpoint's point, once, however often the job was interrupted."""
        have = defaultdict(set)
        for job_id, images in points:
            have[job_id].add(images)
        for row in rows:
            if missing := set(range(CHECKPOINT_STEPS, row.spec["steps"], CHECKPOINT_STEPS)) - have[row.id]:
                report.faults.append(f"{row.id} lacks the points {sorted(missing)}")

    def check_steps(self, report: Report) -> None:
        """By the side file: steps that an attempt computed after a later one had begun."""
        latest: dict[str, int] = defaultdict(int)
        zombies = 0
        for line in sorted(
            (self.folder / "steps.log").read_text().splitlines(), key=lambda line: float(line.split()[0])
        ):
            _, job_id, attempt, _, _ = line.split()
            zombies += int(attempt) < latest[job_id]
            latest[job_id] = max(latest[job_id], int(attempt))
            report.counts["steps computed"] += 1
        report.counts["steps of zombies"] = zombies
        if zombies > 2 * self.plan.freezes * self.plan.workers:
            report.faults.append(f"{zombies} steps were computed by attempts that had lost their job")

    def logged(self, word: bytes) -> int:
        return (self.folder / "processes.log").read_bytes().count(word)
