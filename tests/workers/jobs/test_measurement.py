"""A model is usable when its training has ended; a job of its own measures it and writes the metrics."""

import pytest
from sqlalchemy import select

from app.core.jobs import measurements
from app.core.jobs import state as jobs
from app.core.store import blobs, integrity
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction
from app.core.store.tables import models
from models.types import DataError
from tests import tiny
from tests.workers.jobs.test_training import CONFIG, happened
from tests.workers.trainings import TENANT, accept, attempt, finish, measured, row_of, store_dataset
from workers.jobs.kinds import training
from workers.jobs.kinds.measurement import run_measurement
from workers.jobs.kinds.training import run_training
from workers.store import models as artifacts


@pytest.fixture(autouse=True)
def registered(place, monkeypatch):
    for module in (artifacts, training):
        monkeypatch.setattr(module, "families", lambda: tiny.TRAINABLE)
    monkeypatch.setattr(training.devices, "use_threads", lambda wanted: None)
    store_dataset()


def trained(**spec) -> dict:
    """The row of a training whose model is not measured yet."""
    job = attempt(accept(config=CONFIG, **spec))
    return finish(job, run_training(job))


def measurement_of(row: dict) -> dict:
    return row_of(row["result"]["measurement"]["job"])


def model() -> dict:
    with reading() as conn:
        return dict(conn.execute(select(models)).mappings().one())


def active(kind: str) -> int:
    with reading() as conn:
        return sum(number for (of, state), number in jobs.counts(conn).items() if of == kind and state == "queued")


def test_the_model_is_there_before_its_metrics():
    row = trained()
    assert row["result"]["metrics"] == {} and row["result"]["measurement"]["status"] == "measuring"
    waiting = measurement_of(row)
    assert (waiting["kind"], waiting["queue"], waiting["state"]) == ("measurement", "light", "queued")
    assert artifacts.load_model(row["result"]["version"]) and model()["metrics"] == {}
    card = model()["card"]
    after = measured(row)
    assert after["result"]["metrics"]["mse"] > 0 and after["result"]["measurement"]["status"] == "measured"
    assert model()["metrics"] == after["result"]["metrics"] == happened(row["id"], "measured")[0]["metrics"]
    assert model()["card"] == card, "its digest covers the card"
    seal = integrity.weights(card["digest"], card)
    assert seal.matches([blobs.get(seal.key)])


def test_the_metrics_are_those_of_the_training_itself():
    row = trained()
    job = attempt(accept(config=CONFIG))
    source = training.open_source(None, TENANT, "small")
    whole = training.build(job, source)
    for _ in whole.run():
        pass
    assert measured(row)["result"]["metrics"] == whole.finish()


def test_a_measurement_is_not_part_of_the_tenants_quota(monkeypatch):
    monkeypatch.setenv("ANAMORPH_MAX_JOBS_PER_TENANT", "1")
    training.settings.cache_clear()
    assert trained()["state"] == "succeeded" and active("measurement") == 1


def test_the_same_model_is_measured_once_and_every_training_is_told():
    first, second = trained(), trained()
    assert first["result"]["measurement"] == second["result"]["measurement"] and active("measurement") == 1
    done = measured(first)["result"]
    assert row_of(second["id"])["result"] == done
    assert trained()["result"] == done and active("measurement") == 0


def test_a_deeper_measurement_replaces_one_that_was_asked_for_before():
    quick, full = trained(measure="quick"), trained()
    assert quick["result"]["measurement"]["job"] != full["result"]["measurement"]["job"]
    measured(quick)
    assert model()["metrics"] == {}, "another job measures this version now"
    assert measured(full)["result"]["metrics"] == model()["metrics"] != {}
    assert trained(measure="quick")["result"]["metrics"] == model()["metrics"]


def test_measure_none_measures_nothing():
    row = trained(measure="none")
    assert row["result"]["measurement"] == {"status": "none", "job": None} and active("measurement") == 0


def test_the_measurement_of_a_deleted_model_is_canceled_or_comes_to_nothing():
    row = trained()
    running = attempt(row["result"]["measurement"]["job"])
    result = run_measurement(running)
    with transaction() as conn:
        measurements.cancel(conn, TENANT, "mine")
        model_rows.remove(conn, TENANT, "mine")
    assert row_of(running.id)["cancel_requested"]
    finish(running, result)
    with reading() as conn:
        assert conn.execute(select(models)).first() is None
    queued = trained(seed=2)
    with transaction() as conn:
        measurements.cancel(conn, TENANT, "mine")
        model_rows.remove(conn, TENANT, "mine")
    assert measurement_of(queued)["state"] == "canceled"


def test_a_failed_measurement_leaves_the_model_and_the_next_training_tries_again():
    row = trained()
    job = attempt(row["result"]["measurement"]["job"])
    with transaction() as conn:
        jobs.fail(conn, job.id, job.token, {"code": "internal"})
        found = measurements.view(model()["measurement"], measurements.statuses(conn, [job.id]))
    assert found["status"] == "failed"
    again = trained()
    assert measured(again)["result"]["metrics"]["mse"] > 0
    assert row_of(row["id"])["result"]["measurement"]["status"] == "measuring"  # of the failed job


def test_alarms_are_in_the_card_and_remarks_on_metrics_come_later(monkeypatch):
    monkeypatch.setattr(tiny.TinyAutoencoder, "warnings", lambda self, found: ["It is too small."] * bool(found))
    row = trained()
    assert row["result"]["warnings"] == []
    assert measured(row)["result"]["warnings"] == ["It is too small."] == model()["measurement"]["warnings"]


def test_a_training_that_cannot_be_measured_is_still_a_model(monkeypatch):
    def broken(*_):
        raise DataError("no")

    monkeypatch.setattr(tiny.TinyAutoencoder, "evaluate", broken)
    row = trained()
    with pytest.raises(DataError):
        run_measurement(attempt(row["result"]["measurement"]["job"]))
    assert row_of(row["id"])["state"] == "succeeded" and artifacts.load_model(row["result"]["version"])
