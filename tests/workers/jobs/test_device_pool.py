"""Devices of a worker: who gets which, with fake devices and jobs that only hold them."""

import os
import threading
import time
from importlib import metadata

import pytest

from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.jobs import workers as worker_rows
from app.core.store.database import make_engine, reading, transaction
from tests.workers.jobs.test_slot import BODY, wait_for
from workers.jobs import slot as slots
from workers.jobs.device_pool import DevicePool, device_environment, worker_devices
from workers.jobs.slot import Slot
from workers.jobs.watch import ProcessWatch


@pytest.fixture
def engine(sqlite_url, configure):
    configure(DATABASE_URL=sqlite_url, ANAMORPH_SWEEP_SECONDS=0.05, ANAMORPH_WARM_START=False)
    configure(ANAMORPH_DEVICES="cpu:0,cpu:1,cpu:2,cpu:3")
    engine = make_engine(sqlite_url)
    yield engine
    engine.dispose()


def accept(engine, devices=None, kind="training", **spec):
    with transaction(engine) as conn:
        spec |= {"devices": devices} if devices else {}
        return jobs.accept(conn, tenant="t", kind=kind, spec=spec)[0]["id"]


class Held:
    """Stands for the process of a job: holds its devices for a moment, and counts the holders of each."""

    seconds = 0.05
    lock = threading.Lock()
    holders: dict[str, int]
    order: list[tuple[str, tuple[str, ...]]]

    def __init__(self, claim, bind, command, devices, spares):
        self.claim, self.bind, self.devices = claim, bind, tuple(devices)

    def until_ended(self, stopping, meanwhile):
        with self.lock:
            self.order.append((self.claim.id, self.devices))
            for device in self.devices:
                self.holders[device] = self.holders.get(device, 0) + 1
                assert self.holders[device] == 1
        time.sleep(self.seconds)
        with self.lock:
            for device in self.devices:
                self.holders[device] -= 1
        with transaction(self.bind) as conn:
            jobs.finish(conn, self.claim.id, self.claim.token, {})


@pytest.fixture
def worker(engine, monkeypatch):
    """Four slots of one worker, not started yet."""
    Held.holders, Held.order = {}, []
    monkeypatch.setattr(slots, "ProcessWatch", Held)
    pool = DevicePool()
    threads = [Slot("train", "w", engine, pool) for _ in range(len(pool))]
    yield threads
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def all_ended(engine, ids):
    with reading(engine) as conn:
        return all(jobs.get(conn, "t", each)["state"] == "succeeded" for each in ids)


def test_twelve_trainings_share_four_devices_one_at_a_time(engine, worker):
    ids = [accept(engine) for _ in range(12)]
    for thread in worker:
        thread.start()
    wait_for(lambda: all_ended(engine, ids))
    assert sorted(job for job, _ in Held.order) == ids
    assert {devices for _, devices in Held.order} == {("cpu:0",), ("cpu:1",), ("cpu:2",), ("cpu:3",)}
    assert set(Held.holders.values()) == {0}
    with reading(engine) as conn:
        (started,) = [event for event in events.events_after(conn, ids[0]) if event["kind"] == "running"]
    assert started["data"]["devices"] == list(dict(Held.order)[ids[0]])


def test_a_training_on_two_devices_waits_for_them_and_is_not_overtaken(engine, worker, monkeypatch):
    monkeypatch.setattr(Held, "seconds", 0.3)
    first = [accept(engine) for _ in range(4)]
    pair = accept(engine, 2)
    later = [accept(engine) for _ in range(6)]
    for thread in worker:
        thread.start()
    wait_for(lambda: all_ended(engine, [*first, pair, *later]))
    order = [job for job, _ in Held.order]
    assert order[:4] == first or set(order[:4]) == set(first)
    assert order[4] == pair and len(set(dict(Held.order)[pair])) == 2


def test_a_training_on_more_devices_than_there_are_is_left_to_others(engine, worker):
    five, one = accept(engine, 5), accept(engine)
    for thread in worker:
        thread.start()
    wait_for(lambda: all_ended(engine, [one]))
    with reading(engine) as conn:
        assert jobs.get(conn, "t", five)["state"] == "queued"


def test_a_job_that_waits_for_devices_can_be_canceled(engine, worker, monkeypatch):
    monkeypatch.setattr(Held, "seconds", 3)
    holder = accept(engine)
    for thread in worker:
        thread.start()
    wait_for(lambda: Held.order)
    all_four, one = accept(engine, 4), accept(engine)
    for thread in worker:
        thread.wake()
    with transaction(engine) as conn:
        jobs.cancel(conn, "t", all_four)
    wait_for(lambda: all_ended(engine, [holder, one]))
    assert [job for job, _ in Held.order] == [holder, one]


def test_the_end_of_a_process_frees_its_devices(engine, tmp_path, configure):
    """A worker that is asked to stop gives back the devices of its jobs, as does the end of one job."""
    configure(ANAMORPH_RELEASE_GRACE_SECONDS=1)
    pool = DevicePool()
    thread = Slot("train", "w", engine, pool)
    thread.command = BODY
    ready = tmp_path / "ready"
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="training", spec={"ready": str(ready), "devices": 2})
    thread.start()
    wait_for(lambda: pool.usage()[0]["jobs"] == [job["id"]])
    assert [each["jobs"] for each in pool.usage()] == [[job["id"]], [job["id"]], [], []]
    with transaction(engine) as conn:
        worker_rows.beat(conn, "w", ["train"], devices=pool.usage())
        assert worker_rows.fresh(conn)[0]["devices"] == pool.usage() and worker_rows.most_devices(conn) == 4
    thread.stop()
    thread.join(120)
    assert [each["jobs"] for each in pool.usage()] == [[], [], [], []]
    with reading(engine) as conn:
        assert jobs.get(conn, "t", job["id"])["state"] == "queued"


def test_other_jobs_share_the_least_used_device(engine):
    pool = DevicePool(["cuda:0", "cuda:1", "cuda:2"])
    pool.take(pool.wait_free(1, 0), "training")
    assert [pool.share("a"), pool.share("b")] == [["cuda:1"], ["cuda:2"]]
    assert pool.wait_free(2, 0) == ["cuda:1", "cuda:2"]
    pool.release("training")
    assert pool.share("c") == ["cuda:0"]


def test_the_environment_of_a_process_has_its_devices_only(monkeypatch, configure):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_environment(["cuda:1", "cuda:3"])["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert device_environment(["cpu:2"])["ANAMORPH_DEVICE"] == "cpu"
    assert device_environment([]) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc")
    assert device_environment(["cuda:1"])["CUDA_VISIBLE_DEVICES"] == "GPU-abc"


def test_a_worker_uses_all_gpus_without_settings(monkeypatch, configure):
    for name in ("ANAMORPH_DEVICE", "ANAMORPH_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    configure()
    monkeypatch.setattr("workers.jobs.device_pool.visible_gpus", lambda: 2)
    assert worker_devices() == ("cuda:0", "cuda:1")
    configure(ANAMORPH_DEVICE="cuda:1")
    assert worker_devices() == ("cuda:1",)
    configure(ANAMORPH_DEVICES="cuda:0, cuda:2")
    assert worker_devices() == ("cuda:0", "cuda:2")


def test_torch_without_cuda_has_no_gpus(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "2.0+cpu")
    from workers.jobs.device_pool import visible_gpus

    assert visible_gpus() == 0


def test_a_real_process_gets_its_devices(engine, tmp_path):
    """Its environment, read from the system."""
    with transaction(engine) as conn:
        job, _ = jobs.accept(conn, tenant="t", kind="obey", spec={"ready": str(tmp_path / "ready")})
        claim = jobs.claim(conn, job["id"], "w")
    watch, stopping = ProcessWatch(claim, engine, BODY, ["cuda:2"]), threading.Event()
    thread = threading.Thread(target=watch.until_ended, args=[stopping])
    thread.start()
    wait_for((tmp_path / "ready").exists)
    if os.path.exists(f"/proc/{watch.process.pid}/environ"):
        with open(f"/proc/{watch.process.pid}/environ") as file:
            assert "CUDA_VISIBLE_DEVICES=2" in file.read().split("\0")
    stopping.set()
    thread.join(120)


def test_a_spare_process_does_not_count_the_gpus_before_it_has_a_job(monkeypatch):
    """A backward pass or an optimiser step would, and the driver would ignore CUDA_VISIBLE_DEVICES afterwards."""
    import torch

    from workers.jobs.spare import warm_up

    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("counts the GPUs"))
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: pytest.fail("counts the GPUs"))
    warm_up()
