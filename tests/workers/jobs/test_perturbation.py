"""A universal perturbation from its job to files and row, stopped on the way, and put on images again."""

import io

import numpy as np
import pytest
from PIL import Image

from app.core.errors import Conflict, InvalidRequest
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading, transaction
from tests import tiny
from tests.workers.trainings import TENANT, accept, attempt, finish, row_of, store_dataset
from workers.inference.host import Host
from workers.jobs.job import RunningJob, Stopped
from workers.jobs.kinds import perturbation as perturbations
from workers.jobs.kinds import training
from workers.jobs.kinds.perturbation import run_perturbation
from workers.jobs.kinds.training import run_training
from workers.store import models as artifacts

CONFIG = {"steps": 12, "batch_size": 8, "eps": "60/255"}


@pytest.fixture(autouse=True)
def registered(place, monkeypatch):
    for module in (artifacts, training):
        monkeypatch.setattr(module, "families", lambda: tiny.TRAINABLE)
    for module in (perturbations, training):
        monkeypatch.setattr(module.devices, "use_threads", lambda wanted: None)


@pytest.fixture
def victim() -> str:
    store_dataset()
    job = attempt(accept("tiny_classifier", config={"images": 24 * 20, "batch_size": 8}))
    return finish(job, run_training(job))["result"]["version"]


def fit(victim: str, job_class=RunningJob, name: str | None = "shift", job_id: str | None = None, **config):
    spec = {"model": f"mine@{victim}", "config": CONFIG | config, "name": name}
    return attempt(job_id or accept(kind="perturbation", **spec), job_class)


def stored(name: str = "shift") -> dict:
    with reading() as conn:
        return perturbation_rows.get(conn, TENANT, name)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_a_fit_is_measured_beside_controls_and_kept(victim):
    job = fit(victim)
    result = finish(job, run_perturbation(job))["result"]
    row = stored()
    assert row["digest"] == result["digest"] and row["model_digest"] == victim
    assert result["linf_255"] <= 60 and result["shape"] == [1, 8, 8]
    low, high = result["fooling"]["held_out"]["interval"]
    assert low <= result["fooling"]["held_out"]["rate"] <= high
    assert result["fooling"]["held_out"]["images"] == 8 and set(result["controls"]) == {"random_signs", "permuted"}
    assert set(result["accuracy"]) == {"clean", "perturbed"}
    delta = np.load(io.BytesIO(blobs.get(perturbation_rows.key(row["digest"], "delta.npy"))))
    assert delta.any() and np.allclose(np.rint(delta * 255) / 255, delta, atol=1e-7)
    for name in perturbation_rows.FILES:
        assert blobs.exists(perturbation_rows.key(row["digest"], name))


@pytest.mark.parametrize("config", [{}, {"method": "deepfool", "passes": 2, "fooling": 1.0, "images": 6}])
def test_a_fit_that_was_stopped_ends_where_an_unbroken_one_does(victim, config):
    whole = fit(victim, name="whole", **config)
    expected = finish(whole, run_perturbation(whole))["result"]

    class Stopping(RunningJob):
        asked = 0

        @property
        def stopping(self):
            self.asked += 1
            return "release" if self.asked == 9 else None

    job = fit(victim, Stopping, name="broken", **config)
    with pytest.raises(Stopped):
        run_perturbation(job)
    with transaction() as conn:
        jobs.release(conn, job.id, job.token)
    kept = row_of(job.id)["checkpoint"]
    assert 0 < kept["step"] < 12 and blobs.exists(kept["delta"])
    again = fit(victim, job_id=job.id)
    result = finish(again, run_perturbation(again))["result"]
    assert result["digest"] == expected["digest"]


def test_a_canceled_fit_can_be_resumed_and_leaves_no_row(victim):
    job = fit(victim)
    with transaction() as conn:
        jobs.cancel(conn, TENANT, job.id)
    job.canceled = True
    with pytest.raises(Stopped):
        run_perturbation(job)
    with transaction() as conn:
        jobs.confirm_cancel(conn, job.id, job.token)
        assert jobs.resume(conn, TENANT, job.id)["state"] == "queued"
        assert perturbation_rows.page(conn, TENANT, 10) == ([], None)


def test_a_name_that_was_taken_meanwhile_fails_the_job_and_keeps_the_first(victim):
    first = fit(victim)
    finish(first, run_perturbation(first))
    second = fit(victim, steps=3)
    outcome = run_perturbation(second)
    with pytest.raises(Conflict):
        finish(second, outcome)
    assert stored()["job_id"] == first.id


def test_what_is_sent_back_is_what_was_asked_about(victim):
    job = fit(victim)
    digest = finish(job, run_perturbation(job))["result"]["digest"]
    pixels = np.random.default_rng(3).integers(0, 256, (5, 8, 8)).astype(np.uint8)
    call = {"model": digest, "operation": "apply_perturbation", "images": [png(image) for image in pixels],
            "params": {"perturbation": digest, "model": victim}, "encoding": "png", "grid": False}  # fmt: skip
    host = Host(1 << 30, training.devices.device())
    (outcome,) = host.execute([call])
    answer = outcome["answer"]
    delta = np.load(io.BytesIO(blobs.get(perturbation_rows.key(digest, "delta.npy"))))[0]
    sent = np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in answer["images"]])
    assert np.array_equal(sent, np.clip(np.rint(pixels + delta.astype(np.float64) * 255), 0, 255).astype(np.uint8))
    asked = {"model": victim, "operation": "classify", "params": {}, "images": answer["images"], "encoding": "none"}
    (told,) = host.execute([asked])
    for item, again in zip(answer["facts"]["items"], told["answer"]["facts"]["items"], strict=True):
        assert item["perturbed"] == again["predictions"][0]
        assert item["fooled"] == (item["clean"]["index"] != item["perturbed"]["index"])
    (refused,) = host.execute([call | {"images": [png(np.zeros((9, 9), np.uint8))]}])
    assert refused["problem"]["code"] == "invalid-image"


def test_only_classifiers_of_the_same_size_are_fitted_to(victim):
    store_dataset("large", size=16)
    with pytest.raises(Exception, match="16x16"):
        run_perturbation(attempt(accept(kind="perturbation", model=f"mine@{victim}", dataset="large", config={})))
    job = attempt(accept(config={"images": 24, "batch_size": 8}, name="coder"))
    coder = finish(job, run_training(job))["result"]["version"]
    with pytest.raises(InvalidRequest, match="classifier"):
        run_perturbation(attempt(accept(kind="perturbation", model=f"coder@{coder}", config={})))
