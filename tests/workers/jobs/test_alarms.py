"""Alarms of a training: one event each, the same after a stop or a kill, in the result and in the card."""

import pytest

from app.core.jobs import state as jobs
from app.core.store.database import transaction
from models.diagnosis import Alarm
from tests import tiny
from tests.workers.jobs.test_training import CONFIG, complete, happened, stop_at
from tests.workers.trainings import accept, attempt, row_of, store_dataset
from workers.jobs.kinds import training
from workers.jobs.kinds.training import run_training
from workers.store import models as artifacts


@pytest.fixture(autouse=True)
def registered(place, monkeypatch):
    for module in (artifacts, training):
        monkeypatch.setattr(module, "families", lambda: tiny.TRAINABLE)
    monkeypatch.setattr(training.devices, "use_threads", lambda wanted: None)
    monkeypatch.setattr(tiny.TinyAutoencoder, "diagnose", complain)


def complain(family, look):
    """Queasy at the second look, for good from the third on something else."""
    if len(look.before) == 1:
        yield Alarm("queasy", "It is queasy.", "Let it rest.", {"images": look.now.images})
    if len(look.before) >= 2:
        yield Alarm("tired", "It is tired.", "Let it sleep.")


def told(job_id: str) -> list[tuple]:
    kinds = ("alarm", "alarm_cleared")
    return [(kind, event["name"], event["at_images"]) for kind in kinds for event in happened(job_id, kind)]


def test_alarms_are_events_and_stand_in_the_result_and_the_card():
    store_dataset()
    job_id = accept(config=CONFIG)
    result = complete(job_id)["result"]
    assert [alarm["name"] for alarm in result["alarms"]] == ["queasy", "tired"]
    assert "It is tired. Let it sleep." in result["warnings"]
    assert not any("queasy" in sentence for sentence in result["warnings"])  # it had cleared
    assert artifacts.load_card(result["version"])["warnings"] == result["warnings"]
    assert [name for kind, name, _ in told(job_id) if kind == "alarm"] == ["queasy", "tired"]


@pytest.mark.parametrize("stops", [[2], [7, 10]])
def test_a_stopped_training_emits_each_alarm_once(stops):
    store_dataset()
    wanted_id, job_id = accept(config=CONFIG), accept(config=CONFIG)
    wanted = complete(wanted_id)
    for update in stops:
        stop_at(job_id, update)
    assert complete(job_id)["result"] == wanted["result"] and told(job_id) == told(wanted_id)


def test_a_killed_training_does_not_repeat_alarms(monkeypatch):
    store_dataset()
    wanted_id, job_id = accept(config=CONFIG), accept(config=CONFIG)
    wanted, job, note = complete(wanted_id), attempt(job_id), training.TrainingLog.record

    def fall(training_log, step):
        note(training_log, step)
        if step.images == 160:
            raise KeyboardInterrupt  # nothing is saved

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.TrainingLog, "record", fall)
        run_training(job)
    assert told(job_id)
    with transaction() as conn:
        jobs.release(conn, job.id, job.token)
    assert complete(job_id)["result"] == wanted["result"] and told(job_id) == told(wanted_id)
    assert row_of(job_id)["attempt"] == 2
