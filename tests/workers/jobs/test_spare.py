"""Spare processes: a job that a warm process takes is like one in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from app.core.jobs import state as jobs
from app.core.store.database import transaction
from tests.workers.jobs.test_slot import BODY, Watched, engine, wait_for  # noqa: F401
from workers.jobs.slot import Slot
from workers.jobs.spare import Spares
from workers.jobs.watch import ProcessWatch, shared_environment


@pytest.fixture
def spares():
    made = Spares(BODY)
    yield made
    made.close()


def kept(spares: Spares) -> int:
    spares.keep({**os.environ, **shared_environment("train")})
    return spares.process.pid


class WarmlyWatched(Watched):
    def __init__(self, engine, folder, kind, spares):  # noqa: F811
        self.spares = spares
        super().__init__(engine, folder, kind)

    def watch(self):
        ProcessWatch(self.claim, self.engine, self.command, (), self.spares).until_ended(self.stopping)


def test_a_spare_process_takes_the_job(engine, tmp_path, spares):  # noqa: F811
    spare = kept(spares)
    watched = WarmlyWatched(engine, tmp_path, "obey", spares)
    assert watched.pid() == spare and spares.process is None
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, spare) == min(19, own + 10), "once, not once more for the job"
    with transaction(engine) as conn:
        jobs.cancel(conn, "t", watched.claim.id)
    row = watched.end()
    assert (row["state"], row["checkpoint"]) == ("canceled", {"images": 7})


def test_a_spare_process_that_died_is_replaced_by_a_new_one(engine, tmp_path, spares):  # noqa: F811
    spare = kept(spares)
    os.kill(spare, signal.SIGKILL)
    wait_for(lambda: psutil.Process(spare).status() == psutil.STATUS_ZOMBIE)
    assert WarmlyWatched(engine, tmp_path, "succeed", spares).end()["state"] == "succeeded"


def test_a_spare_process_that_keeps_dying_is_not_started_over_and_over(spares):
    os.kill(kept(spares), signal.SIGKILL)
    wait_for(lambda: spares.process.poll() is not None)
    spares.keep(dict(os.environ))
    assert spares.process is None


def test_a_killed_job_of_a_spare_process_is_a_failed_attempt(engine, tmp_path, spares):  # noqa: F811
    kept(spares)
    watched = WarmlyWatched(engine, tmp_path, "ignore", spares)
    os.kill(watched.pid(), signal.SIGKILL)
    row = watched.end()
    assert (row["state"], row["failures"]) == ("queued", 1)


def test_a_spare_process_ends_with_its_worker():
    code = (
        "import os, time; from workers.jobs.spare import Spares; from workers.jobs.watch import shared_environment\n"
        f"spares = Spares({BODY!r}); spares.keep({{**os.environ, **shared_environment('train')}})\n"
        "print(spares.process.pid, flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    spare = int(worker.stdout.readline())
    time.sleep(0.5)
    worker.kill()
    worker.communicate()
    wait_for(lambda: not psutil.pid_exists(spare) or psutil.Process(spare).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(("queue", "warm", "expected"), [("train", True, 1), ("train", False, 0), ("light", True, 0)])
def test_a_slot_of_trainings_keeps_a_spare_process_until_it_stops(engine, configure, queue, warm, expected):  # noqa: F811
    configure(ANAMORPH_WARM_START=warm, ANAMORPH_SWEEP_SECONDS=0.1)
    slot = Slot(queue, "w", engine)
    slot.start()
    if expected:
        wait_for(lambda: slot.spares.process)
    else:
        threading.Event().wait(1)
    spare = slot.spares.process
    assert (spare is not None) == bool(expected)
    slot.stop()
    slot.join(60)
    assert slot.spares.process is None and (spare is None or spare.returncode is not None)
