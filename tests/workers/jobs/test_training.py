"""One training job from row to published model, and what it tells and keeps on the way."""

import threading
import time
from itertools import pairwise

import pytest
import torch
from sqlalchemy import delete, select

from app.core.errors import AnamorphError, InvalidConfig, InvalidDataset, NotFound
from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading, transaction
from app.core.store.tables import datasets, model_names, models
from models.types import Diverged
from tests import tiny
from tests.workers.trainings import TENANT, accept, attempt, finish, measured, row_of, store_dataset
from workers import codecs
from workers.errors import error_of
from workers.inference.calibration import finished_rates
from workers.jobs import training_log
from workers.jobs.job import RunningJob, Stopped
from workers.jobs.kinds import measurement, training
from workers.jobs.kinds.training import run_training
from workers.jobs.training_log import MARKS, mark_steps, snapshot_steps, window_of
from workers.store import models as artifacts

CONFIG = {"images": 24 * 8, "batch_size": 8}  # 24 updates


@pytest.fixture(autouse=True)
def registered(place, monkeypatch):
    for module in (artifacts, training):
        monkeypatch.setattr(module, "families", lambda: tiny.TRAINABLE)
    monkeypatch.setattr(training.devices, "use_threads", lambda wanted: None)


class Interrupted(RunningJob):
    """Is told to stop before update `at`."""

    at = 5

    @property
    def stopping(self):
        self.asked = getattr(self, "asked", 0) + 1
        return "release" if self.asked == self.at else None


def curve(job_id: str) -> dict[int, dict]:
    with reading() as conn:
        return {point["images"]: point["values"] for point in events.metrics(conn, job_id)}


def happened(job_id: str, kind: str) -> list[dict]:
    with reading() as conn:
        return [event["data"] for event in events.events_after(conn, job_id) if event["kind"] == kind]


def stop_at(job_id: str, update: int) -> None:
    job = attempt(job_id, type("Stopping", (Interrupted,), {"at": update}))
    with pytest.raises(Stopped):
        run_training(job)
    with transaction() as conn:
        jobs.release(conn, job.id, job.token)


def complete(job_id: str) -> dict:
    """The row of the training, with what the measurement of its model has added."""
    job = attempt(job_id)
    return measured(finish(job, run_training(job)))


def test_a_training_ends_as_a_model_that_can_be_loaded_by_name():
    digest = store_dataset()
    row = complete(accept(config=CONFIG))
    result = row["result"]
    assert result["model"] == "mine" and result["images"] == 192 and result["config"]["batch_size"] == 8
    assert result["metrics"]["mse"] > 0 and row["progress"]["images"] == row["progress"]["total"] == 192
    with reading() as conn:
        named = conn.execute(select(model_names.c.digest).where(model_names.c.name == "mine")).scalar_one()
        model = conn.execute(select(models)).mappings().one()
    assert named == result["version"] == model["digest"]
    assert model["dataset_digest"] == digest and model["job_id"] == row["id"] and model["tenant"] == TENANT
    assert model["card"]["attribution"] == "nobody" and "Encodes" in model["capabilities"]
    loaded = artifacts.load_model(named)
    assert not loaded.training and loaded.data.classes == ("one", "two", "three")


def test_the_same_training_twice_is_the_same_model():
    store_dataset()
    first, second = (complete(accept(config=CONFIG))["result"]["version"] for _ in range(2))
    assert first == second != complete(accept(config=CONFIG, seed=2))["result"]["version"]


@pytest.mark.parametrize("stops", [[5], [1, 2, 20], [24]])
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(stops):
    store_dataset()
    wanted_id, job_id = accept(config=CONFIG), accept(config=CONFIG)
    wanted = complete(wanted_id)
    for update in stops:
        stop_at(job_id, update)
        assert row_of(job_id)["failures"] == 0
    row = complete(job_id)
    assert row["attempt"] == len(stops) + 1
    assert row["result"] == wanted["result"]
    assert curve(job_id) == curve(wanted_id)


def test_an_unfinished_curve_point_is_completed_by_the_next_attempt(monkeypatch):
    monkeypatch.setattr("workers.jobs.training_log.window_of", lambda steps: 7)
    store_dataset()
    wanted_id, job_id = accept(config=CONFIG), accept(config=CONFIG)
    complete(wanted_id)
    stop_at(job_id, 10)
    complete(job_id)
    assert list(curve(job_id)) == [56, 112, 168, 192]
    assert curve(job_id) == curve(wanted_id)


def test_what_is_measured_on_the_way_stands_at_the_next_point_of_the_curves(monkeypatch):
    monkeypatch.setattr("workers.jobs.training_log.window_of", lambda steps: 7)

    class Watched(tiny.TinyAutoencoder):
        def midway_points(self):
            return [72, 184]

        def evaluate_midway(self, train, validation, context):
            return {"sum": float(sum(weight.sum() for weight in self.parameters()))}

    monkeypatch.setattr(training, "families", lambda: {"tiny_autoencoder": Watched})
    store_dataset()
    wanted_id, job_id = accept(config=CONFIG), accept(config=CONFIG)
    complete(wanted_id)
    stop_at(job_id, 10)  # after the measurement, before the point
    complete(job_id)
    assert [images for images, values in curve(job_id).items() if "sum" in values] == [112, 192]
    assert curve(job_id) == curve(wanted_id)


def test_a_killed_training_goes_on_from_its_last_checkpoint(monkeypatch):
    store_dataset()
    wanted_id, job_id = accept(config=CONFIG), accept(config=CONFIG)
    wanted = complete(wanted_id)
    job, save = attempt(job_id), training.TrainingLog.save

    def note(training_log, step):
        original(training_log, step)
        if step.images == 48:
            save(training_log)
            training_log.finish_saving()
        if step.images == 80:
            training_log.report()
            raise KeyboardInterrupt  # nothing is saved

    original = training.TrainingLog.record
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingLog, "record", note)
        with pytest.raises(KeyboardInterrupt):
            run_training(job)
    assert max(curve(job_id)) == 80 and row_of(job_id)["checkpoint"]["images"] == 48
    with transaction() as conn:
        jobs.release(conn, job.id, job.token)
    assert complete(job_id)["result"] == wanted["result"]
    assert curve(job_id) == curve(wanted_id)


def saved_by(monkeypatch, save_checkpoint) -> None:
    monkeypatch.setattr("workers.jobs.training_log.save_checkpoint", save_checkpoint)
    monkeypatch.setattr("workers.jobs.training_log.mark_steps", lambda steps: {2})


def test_updates_go_on_while_a_checkpoint_is_written_and_it_is_named_once_it_is(monkeypatch):
    written, seen = threading.Event(), []

    def write(key, state):
        assert written.wait(60)
        return artifacts.save_checkpoint(key, state)

    def note(training_log, step):
        original(training_log, step)
        seen.append(row_of(job_id)["checkpoint"])
        if step.images == 80:
            written.set()

    saved_by(monkeypatch, write)
    original = training.TrainingLog.record
    monkeypatch.setattr(training.TrainingLog, "record", note)
    store_dataset()
    job_id = accept(config=CONFIG)
    wanted = complete(job_id)
    assert seen[:10] == [None] * 10  # up to 80 images
    kept = row_of(job_id)["checkpoint"]["kept"]
    assert [entry["images"] for entry in kept] == [192, 16]
    assert artifacts.load_checkpoint(kept[1:]).facts["images"] == 16
    assert complete(accept(config=CONFIG))["result"]["version"] == wanted["result"]["version"]


def test_a_checkpoint_that_cannot_be_written_ends_the_attempt(monkeypatch):
    def write(key, state):
        raise OSError("no space left on device")

    saved_by(monkeypatch, write)
    store_dataset()
    job_id = accept(config=CONFIG)
    with pytest.raises(OSError, match="no space left"):
        complete(job_id)
    assert row_of(job_id)["checkpoint"] is None


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before():
    store_dataset()
    wanted, job_id = complete(accept(config=CONFIG)), accept(config=CONFIG)
    stop_at(job_id, 5)
    stop_at(job_id, 5)
    newest, older = row_of(job_id)["checkpoint"]["kept"]
    assert (newest["images"], older["images"]) == (80, 48)
    blobs.put(newest["key"], b"half of it", create_only=False)
    assert artifacts.load_checkpoint([newest, older]).facts["images"] == 48
    assert complete(job_id)["result"] == wanted["result"]


def test_without_any_checkpoint_the_training_starts_over_and_says_so():
    store_dataset()
    wanted, job_id = complete(accept(config=CONFIG)), accept(config=CONFIG)
    stop_at(job_id, 5)
    for entry in row_of(job_id)["checkpoint"]["kept"]:
        blobs.delete_prefix(entry["key"])
    assert complete(job_id)["result"] == wanted["result"]
    assert happened(job_id, "restarted")


def test_two_checkpoints_are_kept_and_those_along_the_way(monkeypatch):
    monkeypatch.setenv("ANAMORPH_CHECKPOINT_SECONDS", "0.0001")
    monkeypatch.setattr(training_log, "CHECKPOINT_SHARE", 1e9)
    training.settings.cache_clear()
    store_dataset()
    job_id = accept(config=CONFIG)
    complete(job_id)
    kept = [key for key, _ in blobs.list(f"jobs/{job_id}") if key.endswith(".safetensors")]
    ref = row_of(job_id)["checkpoint"]
    assert sorted(kept) == sorted({entry["key"] for entry in ref["kept"] + ref["marks"]})
    assert [entry["images"] for entry in ref["kept"]] == [192, 184] and len(happened(job_id, "checkpoint")) == 24
    assert [entry["images"] for entry in ref["marks"]] == [8, 16, 24, 48, 96, 192]


def test_marks_are_bounded_by_bytes_and_the_earliest_go_first(monkeypatch):
    store_dataset()
    complete(job_id := accept(config=CONFIG))
    size = row_of(job_id)["checkpoint"]["marks"][-1]["bytes"]
    monkeypatch.setenv("ANAMORPH_CHECKPOINT_BYTES", str(2 * size + size // 2))
    training.settings.cache_clear()
    complete(job_id := accept(config=CONFIG))
    assert [entry["images"] for entry in row_of(job_id)["checkpoint"]["marks"]] == [96, 192]
    files = [key for key, _ in blobs.list(f"jobs/{job_id}") if key.endswith(".safetensors")]
    assert len(files) == 2


@pytest.mark.parametrize("steps", [1, 2, 7, 63, 64, 100, 127, 500, 5000, 10**6])
def test_marks_are_doublings_of_the_way_each_with_its_snapshot(steps):
    marks = mark_steps(steps)
    assert marks <= snapshot_steps(steps) and steps in marks and 1 <= len(marks) <= MARKS
    assert steps < 200 or len(marks) == MARKS
    assert all(0.3 < small / big < 0.7 for small, big in pairwise(sorted(marks)) if small > 2)


def test_snapshots_are_sheets_named_by_images():
    store_dataset()
    job_id = accept(config=CONFIG)
    complete(job_id)
    told = [event["images"] for event in happened(job_id, "snapshot")]
    assert told == sorted(set(told)) and told[0] == 0 and told[-1] == 192
    for images in told:
        assert codecs.decode(blobs.get(f"jobs/{job_id}/snapshots/{images}.png")).shape == (1, 18, 18)
    assert told == [0, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192]
    points = curve(job_id)
    for event in happened(job_id, "snapshot")[1:]:
        assert event["metrics"] == points[event["images"]]


@pytest.mark.parametrize("stops", [(), (10, 9)])
def test_a_snapshot_between_curve_points_has_the_means_so_far(monkeypatch, stops):
    monkeypatch.setattr("workers.jobs.training_log.window_of", lambda steps: 7)
    store_dataset()
    losses, advance = {}, training.Training.advance

    def heard(self):
        step = advance(self)
        losses[step.images] = float(step.metrics["loss"])
        return step

    monkeypatch.setattr(training.Training, "advance", heard)
    job_id = accept(config=CONFIG)
    for update in stops:
        stop_at(job_id, update)
    complete(job_id)
    for event in happened(job_id, "snapshot")[1:]:
        last = event["images"] // 8
        window = [losses[8 * step] for step in range((last - 1) // 7 * 7 + 1, last + 1)]
        assert event["metrics"]["loss"] == pytest.approx(sum(window) / len(window), rel=1e-5)


def test_a_canceled_training_keeps_its_last_snapshot_and_checkpoint():
    store_dataset()
    job_id = accept(config=CONFIG)
    stop_at(job_id, 3)
    assert blobs.exists(f"jobs/{job_id}/snapshots/24.png")
    assert row_of(job_id)["checkpoint"]["images"] == 24


@pytest.mark.parametrize("steps", [1, 2, 63, 64, 127, 128, 500, 1023, 5000, 77_777, 10**6, 10**7])
def test_snapshots_and_points_are_many_enough_and_not_too_many(steps):
    looks, points = snapshot_steps(steps), -(-steps // window_of(steps))
    assert {0, 1, steps} <= looks and len(looks) <= 96 and max(looks) == steps
    assert len(looks) > min(steps, 6) and (steps < 2400 or len(looks) > 64)
    assert min(steps, 128) <= points <= 1000


@pytest.mark.parametrize("steps", [400, 690, 5000])
@pytest.mark.parametrize("cost", [0.2, 0.5, 1.0])
def test_snapshots_take_a_twentieth_of_a_training_and_show_a_lesson(steps, cost):
    looks = snapshot_steps(steps, cost)
    assert len(looks) * cost <= 0.055 * steps and len(looks) >= 20 and looks == snapshot_steps(steps, cost)
    assert sorted(looks)[:3] == [0, 1, 2]


def test_checkpoints_that_take_long_are_further_apart(monkeypatch):
    monkeypatch.setenv("ANAMORPH_CHECKPOINT_SECONDS", "0.0001")
    training.settings.cache_clear()
    store_dataset()
    job_id, state = accept(config=CONFIG), training.Training.state
    monkeypatch.setattr(training.Training, "state", lambda self: time.sleep(1) or state(self))
    monkeypatch.setattr(training_log, "mark_steps", lambda steps: {1, steps})
    complete(job_id)
    assert len(happened(job_id, "checkpoint")) == 2


def test_progress_carries_an_estimate():
    store_dataset()
    told = []

    class Listening(RunningJob):
        def progress(self, images, total, eta_seconds=None, **facts):
            told.append((images, total, eta_seconds))

    run_training(attempt(accept(config=CONFIG), Listening))
    assert told[0][:2] == (0, 192) and told[-1][:2] == (192, 192)
    assert told[-1][2] == 0 and all(eta is None or eta >= 0 for *_, eta in told)


def test_a_finished_training_says_how_fast_it_was():
    store_dataset()
    row = complete(accept(config=CONFIG))
    assert row["result"]["config"]["effort"] == "lesson"
    (rate,) = finished_rates()
    assert (rate.family, rate.device) == ("tiny_autoencoder", "cpu") and rate.images_per_second > 0
    assert rate.data["height"] == 8 and rate.config["batch_size"] == 8


class Phased(tiny.TinyAutoencoder):
    """Its updates cost three times as much in the second half."""

    name = "tiny_phased"

    def relative_cost(self, images):
        return 1.0 if images < self.total / 2 else 3.0

    def step(self, batch, optimisers, context):
        time.sleep(0.1 * self.relative_cost(context.images))
        return super().step(batch, optimisers, context)

    def snapshot(self, probe, context):
        return None


@pytest.mark.long
def test_the_estimate_knows_the_phases_of_a_training(monkeypatch):
    monkeypatch.setitem(tiny.TRAINABLE, Phased.name, Phased)
    store_dataset()
    told = []

    class Listening(RunningJob):
        def progress(self, images, total, eta_seconds=None, **facts):
            told.append((time.monotonic(), images / total, eta_seconds))

    run_training(attempt(accept(Phased.name, config={"images": 8 * 40, "batch_size": 8}), Listening))
    end = told[-1][0]
    judged = [(eta, end - now) for now, share, eta in told if 0.2 <= share <= 0.9]
    assert len(judged) >= 5
    for eta, remaining in judged:
        assert abs(eta - remaining) <= 0.3 * remaining


def test_a_builtin_dataset_is_imported_on_first_use():
    row = complete(accept("tiny_classifier", dataset="digits8", config={"images": 64, "batch_size": 32}))
    assert row["result"]["dataset"] == "digits8"


def test_a_dataset_that_is_not_there_is_named():
    with pytest.raises(NotFound, match="'nowhere' not found"):
        run_training(attempt(accept(dataset="nowhere")))


def test_resume_after_the_dataset_was_deleted_is_a_clear_error():
    digest, job_id = store_dataset(), accept(config=CONFIG)
    stop_at(job_id, 5)
    with transaction() as conn:
        conn.execute(delete(datasets).where(datasets.c.digest == digest))
    blobs.delete_prefix(f"datasets/{digest}")
    with pytest.raises(InvalidDataset, match="deleted, and this training cannot continue"):
        run_training(attempt(job_id))


def test_a_resumed_training_uses_its_own_version_of_the_dataset():
    store_dataset()
    wanted, job_id = complete(accept(config=CONFIG)), accept(config=CONFIG)
    stop_at(job_id, 5)
    with transaction() as conn:
        conn.exec_driver_sql("UPDATE datasets SET deleted_at = 1")
    store_dataset(seed=1)
    assert complete(job_id)["result"] == wanted["result"]


def test_a_diverged_training_fails_with_its_code_and_a_remedy():
    store_dataset()
    with pytest.raises(Diverged) as caught:
        run_training(attempt(accept(config=CONFIG | {"learning_rate": 1.0}, family="tiny_exploding")))
    problem = error_of(caught.value).problem()
    assert problem["code"] == "diverged" and "learning_rate" in problem["remedy"]


def test_numbers_that_are_no_better_than_trivial_ones_are_pointed_out():
    said = list(measurement.warnings({"mse": 0.2, "mse_mean_image": 0.1, "accuracy": 0.9, "accuracy_majority": 0.5}))
    assert len(said) == 1 and said[0].startswith("mse is 0.2, no better than 0.1")
    assert not list(measurement.warnings({"mse": 0.1, "mse_mean_image": 0.2, "psnr": 9.0}))
    assert list(measurement.warnings({"psnr": None})) == ["psnr could not be measured: the values are not finite."]


def test_init_from_starts_with_the_weights_of_a_model():
    store_dataset()
    version = complete(accept(config=CONFIG))["result"]["version"]
    short = {"images": 8, "batch_size": 8, "learning_rate": 1e-8}
    job_id = accept(config=short, name="child", init_from="mine", seed=5)
    child = artifacts.load_model(complete(job_id)["result"]["version"])
    torch.testing.assert_close(
        child.outward[0].weight, artifacts.load_model(version).outward[0].weight, atol=1e-6, rtol=0
    )
    for reference in (version, f"mine@{version}", f"mine@{version[:12]}"):
        complete(accept(config=short, init_from=reference))
    for reference in ("nobody", f"yours@{version}", "0" * 64):
        with pytest.raises(NotFound, match="not found"):
            run_training(attempt(accept(config=short, init_from=reference)))
    with pytest.raises(ValueError, match="no weights in common"):
        run_training(attempt(accept("tiny_classifier", config=short, init_from="mine")))


def test_a_fork_that_changes_nothing_ends_as_its_origin():
    store_dataset()
    origin = complete(accept(config=CONFIG))
    fork = complete(accept(config=CONFIG, fork_from={"job": origin["id"], "images": 48}))
    first, second = (artifacts.load_model(row["result"]["version"]).state_dict() for row in (origin, fork))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_fork_from_goes_on_where_another_job_stopped():
    store_dataset()
    origin, longer = accept(config=CONFIG), CONFIG | {"images": 400}
    complete(origin)
    row = complete(accept(config=longer, fork_from=origin))
    assert min(curve(row["id"])) > 192 and row["result"]["images"] == 400
    early = complete(accept(config=longer, fork_from={"job": origin, "images": 48}))
    assert min(curve(early["id"])) > 48 and early["result"]["images"] == 400
    with pytest.raises(InvalidConfig, match="no checkpoint after 40 images"):
        run_training(attempt(accept(config=longer, fork_from={"job": origin, "images": 40})))
    with pytest.raises(InvalidConfig, match="more than 192"):
        run_training(attempt(accept(config=CONFIG, fork_from=origin)))
    with pytest.raises(InvalidConfig, match="does not fit"):
        run_training(attempt(accept("tiny_classifier", config=longer, fork_from=origin)))
    with pytest.raises(AnamorphError):
        run_training(attempt(accept(config=longer, fork_from="no job")))
