"""Trainings on two CPU devices as real jobs: a killed rank or job goes on exactly, and the group dies with its job."""

import time

import psutil
import pytest
from sqlalchemy import update

from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.store.database import make_engine, reading, transaction
from app.core.store.tables import jobs as table
from tests.system.test_resume import SECONDS, complete, curve, kill_after_progress, log_of, row_of, start

SPEC = {
    "family": "gan",
    "dataset": "digits8",
    "name": "mine",
    "seed": 7,
    "devices": 2,
    # batch norm, a pool and adaptive augmentation: what each device has of its own
    "config": {"batch_size": 16, "images": 150 * 16, "body": "dcgan", "width": 4, "replay": 64, "r1": 0.0}
    | {"augment": "adaptive", "measure_every": 0},
}


@pytest.fixture
def engine(sqlite_url):
    engine = make_engine(sqlite_url)
    yield engine
    engine.dispose()


def accept(engine) -> str:
    with transaction(engine) as conn:
        return jobs.accept(conn, tenant="tests", kind="training", spec=SPEC)[0]["id"]


def other_rank(process) -> psutil.Process:
    """The process of the second device, once it is there."""
    deadline = time.monotonic() + SECONDS
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return children[0]


def wait_for_checkpoint(engine, job_id, process, folder):
    deadline = time.monotonic() + SECONDS
    while not row_of(engine, job_id)["checkpoint"]:
        assert time.monotonic() < deadline and process.poll() is None, log_of(folder).read_text()
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_training_on_two_devices_goes_on_exactly_after_kills(engine, tmp_path):
    wanted_id, job_id = accept(engine), accept(engine)
    wanted = complete(engine, wanted_id, tmp_path)
    assert wanted["result"]["devices"] == 2

    # the other rank dies: the attempt fails with the reason, and the job waits to be tried again
    _, process = start(engine, job_id, tmp_path)
    wait_for_checkpoint(engine, job_id, process, tmp_path)
    other_rank(process).kill()
    process.wait(timeout=SECONDS)
    row = row_of(engine, job_id)
    assert (row["state"], row["failures"]) == ("queued", 1), log_of(tmp_path).read_text()
    with reading(engine) as conn:
        assert [event["data"].get("why") for event in events.events_after(conn, job_id)][-1] == "rank-lost"

    # the job's process dies: the other rank dies with it
    with transaction(engine) as conn:
        conn.execute(update(table).where(table.c.id == job_id).values(run_after=0))
    claim, process = start(engine, job_id, tmp_path)
    wait_for_checkpoint(engine, job_id, process, tmp_path)
    other = other_rank(process)
    killed = kill_after_progress(engine, claim, process, 0.1)
    psutil.wait_procs([other], timeout=60)
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
    if killed:
        complete(engine, job_id, tmp_path)
    row = row_of(engine, job_id)
    assert row["result"] == wanted["result"] and curve(engine, job_id) == curve(engine, wanted_id)


@pytest.mark.timeout(600)
def test_a_canceled_training_on_two_devices_leaves_no_process(engine, tmp_path):
    job_id = accept(engine)
    _, process = start(engine, job_id, tmp_path)
    wait_for_checkpoint(engine, job_id, process, tmp_path)
    other = other_rank(process)
    with transaction(engine) as conn:
        jobs.cancel(conn, "tests", job_id)
    process.wait(timeout=SECONDS)
    assert row_of(engine, job_id)["state"] == "canceled"
    psutil.wait_procs([other], timeout=60)
    assert not other.is_running() or other.status() == psutil.STATUS_ZOMBIE
