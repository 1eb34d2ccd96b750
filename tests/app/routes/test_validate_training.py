"""A training is rehearsed by a worker before its job is accepted; without an answer it is accepted all the same."""

import pytest

from app.core.errors import DeadlineExceeded, InvalidConfig, InvalidDataset, WorkerLost
from tests.app.conftest import add_dataset, end_workers

pytestmark = pytest.mark.anyio
BODY = {"family": "vae", "dataset": "squares", "config": {"latent_dim": 8}}


@pytest.fixture(autouse=True)
def dataset(app):
    add_dataset("squares")


async def test_the_worker_sees_the_settings_and_the_facts_of_the_dataset(client, lane):
    assert (await client.post("/v1/trainings", json=BODY)).status_code == 202
    (call,) = lane.seen
    assert (call.operation, call.params["family"], call.params["config"]["latent_dim"]) == ("rehearsal", "vae", 8)
    assert (call.params["facts"]["height"], call.params["facts"]["classes"]) == (8, ["even", "odd"])


@pytest.mark.parametrize(
    ("error", "pointer"),
    [
        (InvalidConfig("they clash", field="config/body", remedy="change one"), "/config/body"),
        (InvalidConfig("cannot work"), "/config"),
        (InvalidDataset("too little", field="dataset"), "/dataset"),
    ],
)
async def test_a_training_that_the_worker_refuses_does_not_become_a_job(client, lane, error, pointer):
    lane.error = error
    answer = await client.post("/v1/trainings", json=BODY, headers={"Idempotency-Key": "one"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
    assert answer.json()["detail"] == error.detail and not (await client.get("/v1/jobs")).json()["data"]
    lane.error = None
    assert (await client.post("/v1/trainings", json=BODY, headers={"Idempotency-Key": "one"})).status_code == 202


@pytest.mark.parametrize(("dataset", "status"), [("openmoji-people", 202), ("mnist5k", 422)])
async def test_a_dataset_not_yet_imported_is_known_but_for_its_attributes(
    monkeypatch, app, client, lane, dataset, status
):
    monkeypatch.setitem(app.state.catalog["families"]["vae"], "layouts", ["labelled", "attributes"])
    body = BODY | {"dataset": dataset}
    lane.error = InvalidDataset("it lacks something", field="dataset")
    assert (await client.post("/v1/trainings", json=body)).status_code == status
    assert lane.seen[0].params["facts"]["columns"]["train"]["images"] > 0
    lane.error = InvalidConfig("they clash", field="config/body")
    assert (await client.post("/v1/trainings", json=body)).status_code == 422


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), WorkerLost("gone")])
async def test_a_training_is_accepted_if_no_worker_answers(client, lane, error):
    lane.error = error
    assert (await client.post("/v1/trainings", json=BODY)).status_code == 202


async def test_a_training_is_accepted_without_inference_workers(app, client, lane):
    await end_workers(app)
    assert (await client.post("/v1/trainings", json=BODY)).status_code == 202 and not lane.seen


async def test_a_repeated_training_is_not_validated_again(client, lane):
    first = await client.post("/v1/trainings", json=BODY, headers={"Idempotency-Key": "one"})
    lane.error = InvalidConfig("they clash", field="config/body")
    again = await client.post("/v1/trainings", json=BODY, headers={"Idempotency-Key": "one"})
    assert again.json()["id"] == first.json()["id"] and again.headers["Idempotency-Replayed"] == "true"


async def test_a_dry_run_returns_the_complete_request_without_training(client, lane):
    headers = {"Idempotency-Key": "one"}
    answer = await client.post("/v1/trainings?dry_run=true", json=BODY, headers=headers)
    assert answer.status_code == 200, answer.text
    asked = answer.json()["request"]
    assert (asked["dataset"], asked["config"]["images"], asked["config"]["latent_dim"]) == ("squares", 2000, 8)
    assert not (await client.get("/v1/jobs")).json()["data"]
    assert (await client.post("/v1/trainings", json=BODY, headers=headers)).status_code == 202


async def test_a_dry_run_needs_a_worker(app, client, lane):
    lane.error = InvalidConfig("they clash", field="config/body")
    answer = await client.post("/v1/trainings?dry_run=true", json=BODY)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/config/body")
    await end_workers(app)
    answer = await client.post("/v1/trainings?dry_run=true", json=BODY)
    assert answer.status_code == 503 and answer.headers["retry-after"]
