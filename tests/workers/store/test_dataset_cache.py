"""The frozen feature network is learned once for a dataset, kept beside it, and gone with it."""

import subprocess
import sys
import threading

import pytest
import torch

from app.core.store import blobs
from models.data import Columns
from models.evaluation import fidelity
from tests.workers.jobs.test_training import complete
from tests.workers.trainings import accept, attempt, finish, store_dataset
from workers.data import open_dataset
from workers.jobs.job import Stopped
from workers.jobs.kinds import training
from workers.jobs.kinds.measurement import run_measurement
from workers.jobs.kinds.training import run_training
from workers.store.dataset_cache import DatasetCache

CONFIG = {"images": 64, "batch_size": 8, "latent_dim": 2, "hidden": [8]}


@pytest.fixture(autouse=True)
def lean(place, monkeypatch):
    monkeypatch.setattr(training.devices, "use_threads", lambda wanted: None)
    monkeypatch.setattr("models.evaluation.feature_network.MAX_TRAINED", 128)


@pytest.fixture
def learned(monkeypatch) -> list:
    """Grows by one whenever a network is trained."""
    calls, original = [], fidelity.feature_net

    def counted(*given):
        calls.append(given)
        return original(*given)

    monkeypatch.setattr(fidelity, "feature_net", counted)
    return calls


def key(digest: str) -> str:
    return f"datasets/{digest}/{fidelity.CACHE_NAME}.safetensors"


def measure(digest: str, tick=lambda: None) -> fidelity.Fidelity:
    data = open_dataset(digest)
    cache = DatasetCache(digest, tick)
    return fidelity.Fidelity(Columns(data.train, cache), Columns(data.validation), torch.device("cpu"), 3)


def test_two_trainings_of_one_dataset_learn_one_network_and_agree(learned):
    digest = store_dataset(count=40)
    first, second = (complete(accept("autoencoder", config=CONFIG))["result"] for _ in range(2))
    assert len(learned) == 1 and blobs.exists(key(digest))
    assert first["metrics"]["fd"] == second["metrics"]["fd"] > 0 and first["version"] == second["version"]
    other = complete(accept("vae", config=CONFIG))["result"]["metrics"]
    assert len(learned) == 1 and other["fd_floor"] == first["metrics"]["fd_floor"]


def test_a_kept_network_measures_as_the_learned_one(learned):
    digest = store_dataset(count=40)
    fresh, kept = measure(digest), measure(digest)
    assert len(learned) == 1
    assert fresh.report(fresh.train_images) == kept.report(kept.train_images)
    assert torch.equal(fresh.class_logits(fresh.validation_images), kept.class_logits(kept.validation_images))


def test_trainings_that_learn_at_once_go_on_with_the_network_of_the_first():
    digest, found, gate = store_dataset(count=40), [], threading.Barrier(2, timeout=60)

    def run(seed: int) -> None:
        cache = DatasetCache(digest)
        tensors = {"a": torch.full((3,), float(seed))}
        gate.wait()
        found.append(cache.put("race", tensors)["a"].tolist())

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2 and found[0] == found[1] in ([1.0] * 3, [2.0] * 3)


def test_a_network_is_learned_once_while_the_others_wait(learned, monkeypatch):
    digest, waiting, found = store_dataset(count=40), threading.Event(), []
    feature_net = fidelity.feature_net

    def slowly(*given):
        assert waiting.wait(60)
        return feature_net(*given)

    monkeypatch.setattr(fidelity, "feature_net", slowly)
    threads = [threading.Thread(target=lambda: found.append(measure(digest, waiting.set))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(learned) == 1 and len(found) == 3
    assert found[0].report(found[0].train_images) == found[2].report(found[2].train_images)


def test_whoever_waits_can_be_stopped_and_goes_on_when_the_learner_is_killed():
    digest = store_dataset(count=40)
    hold = f"""
import time
from workers.store.dataset_cache import DatasetCache
with DatasetCache("{digest}").learning("net"):
    print("held", flush=True)
    time.sleep(600)
"""
    holder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"

        def stop():
            raise Stopped("cancel")

        with pytest.raises(Stopped), DatasetCache(digest, stop).learning("net"):
            pass
        with DatasetCache(digest, holder.kill).learning("net"):
            assert holder.wait(60) != 0
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize("bytes_there", [b"half of it", None])
def test_unusable_cached_network_is_learned_again(learned, bytes_there):
    digest = store_dataset(count=40)
    if bytes_there:
        blobs.put(key(digest), bytes_there)
    else:  # another version of what the tensors mean
        DatasetCache(digest).put(fidelity.CACHE_NAME, {"wanted": torch.zeros(2)})
    assert measure(digest).count == 10 and len(learned) == 1


def test_nothing_is_left_behind_for_a_dataset_that_was_deleted_meanwhile():
    digest = store_dataset(count=40)
    data = open_dataset(digest)
    blobs.delete_prefix(f"datasets/{digest}")
    columns = Columns(data.train, DatasetCache(digest)), Columns(data.validation)
    assert fidelity.Fidelity(*columns, torch.device("cpu"), 3).count == 10
    assert not list(blobs.list(f"datasets/{digest}"))


def test_a_measurement_can_be_stopped_while_the_network_is_learned(monkeypatch):
    digest, job_id = store_dataset(count=40), accept("autoencoder", config=CONFIG)
    trained = attempt(job_id)
    row, pause = finish(trained, run_training(trained)), DatasetCache.__init__
    job = attempt(row["result"]["measurement"]["job"])

    def halting(cache, wanted, tick=lambda: None):
        def stop():
            job.canceled = True
            tick()

        pause(cache, wanted, stop)

    monkeypatch.setattr(DatasetCache, "__init__", halting)
    with pytest.raises(Stopped):
        run_measurement(job)
    assert not blobs.exists(key(digest)) and row["checkpoint"]["images"] == 64
