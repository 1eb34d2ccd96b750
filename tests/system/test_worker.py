"""A real Celery worker: hears a ring, shows its presence, and leaves its job in order when asked to stop."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from app.core.jobs import state
from app.core.jobs import workers as worker_rows
from app.core.store.database import make_engine, reading
from app.core.store.tables import jobs
from tests.servers import Valkey
from tests.system.processes import descendants, end, eventually

ROOT = Path(__file__).parents[2]
CELERY = ["-m", "celery", "-A", "tests.system.chain", "worker", "--pool=threads", "-c", "2"]
QUEUES = ["-Q", ",".join(state.QUEUES)]
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning"]


class House:
    """A worker and a front end over one database; the loops that would do without rings are half a minute apart."""

    def __init__(self, folder: Path, database_url: str, sweep_seconds: float):
        self.folder, self.engine, self.processes = folder, make_engine(database_url), []
        self.environment = os.environ | {
            "DATABASE_URL": database_url,
            "BROKER_URL": f"redis+socket://{folder}/v.sock",
            "BLOBS_URL": f"file://{folder}/blobs",
            "ANAMORPH_DATA_DIR": str(folder),
            "ANAMORPH_SWEEP_SECONDS": str(sweep_seconds),
            "PYTHONPATH": str(ROOT),
        }

    def start(self, *arguments: str) -> subprocess.Popen:
        options = {"cwd": ROOT, "env": self.environment, "stderr": subprocess.STDOUT, "start_new_session": True}
        with open(self.folder / "log", "ab") as log:
            self.processes.append(subprocess.Popen([sys.executable, *arguments], stdout=log, **options))
        return self.processes[-1]

    def start_worker(self) -> subprocess.Popen:
        process = self.start(*CELERY, *QUEUES, *QUIET)
        eventually(lambda: self.present(), 60)
        return process

    def present(self) -> list[dict]:
        with reading(self.engine) as conn:
            return worker_rows.fresh(conn)

    def job(self):
        with reading(self.engine) as conn:
            return conn.execute(select(jobs)).one_or_none()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.engine.dispose()


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(prefix="wk", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def test_a_worker_hears_a_ring_and_leaves_its_job_in_order(folder, sqlite_url):
    house, broker = House(folder, sqlite_url, sweep_seconds=600), Valkey(folder)
    try:
        worker = house.start_worker()
        assert house.present()[0]["queues"] == sorted(state.QUEUES)
        time.sleep(1)  # its first look at the table is over
        house.start("-m", "tests.system.chain", "front", "100000", "0.05")
        job = eventually(lambda: (row := house.job()) and row.state == "running" and row.checkpoint and row)
        children = descendants(worker.pid)
        assert end(worker) == 0
        after = house.job()
        assert (after.state, after.failures, after.attempt) == ("queued", 0, 1)
        assert after.checkpoint["images"] >= job.checkpoint["images"]
        assert house.present() == []
        assert children and not [child for child in children if child.is_running()]
    finally:
        house.close()
        broker.stop()


def test_jobs_run_without_any_broker(folder, sqlite_url):
    """Rings make jobs start sooner, nothing more."""
    house = House(folder, sqlite_url, sweep_seconds=0.5)
    try:
        house.start_worker()
        house.start("-m", "tests.system.chain", "front", "4", "0.01")
        eventually(lambda: (row := house.job()) and row.state == "succeeded")
    finally:
        house.close()
