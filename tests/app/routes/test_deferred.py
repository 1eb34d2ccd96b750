"""Calls that became jobs."""

import pytest

from app.core.calls.messages import unpack_inputs
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading
from tests.app.conftest import add_model, png

pytestmark = pytest.mark.anyio
ASYNC = {"Prefer": "respond-async"}


@pytest.fixture(autouse=True)
def model(app):
    return add_model("v")


async def test_a_call_becomes_a_job_with_its_inputs_in_a_blob(client, lane, model):
    files = [("image", (f"{i}.png", png(i), "image/png")) for i in range(300)]
    answer = await client.post("/v1/models/v/denoise", files=files, headers=ASYNC | {"Accept": "application/zip"})
    assert answer.status_code == 202, answer.text
    assert not lane.seen
    assert answer.headers["location"] == answer.json()["links"]["self"]
    assert "upload" not in answer.json()["request"], "where blobs lie is nobody's business"
    with reading() as conn:
        spec = jobs.get(conn, "local", answer.json()["id"])["spec"]
    expected = {"model": model, "operation": "denoise", "params": {}, "encoding": "png", "grid": False, "name": "v"}
    assert expected.items() <= spec.items()
    assert unpack_inputs(blobs.get(spec["upload"])) == ([png(i) for i in range(300)], None, None)


async def test_repeated_with_its_key_it_is_one_job_and_one_blob(client):
    headers = ASYNC | {"Idempotency-Key": "once"}
    answers = [await client.post("/v1/models/v/denoise", content=png(), headers=headers) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert len(blobs.list("uploads")) == 1
    other = await client.post("/v1/models/v/denoise", content=png(5), headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-mismatch")


async def test_a_seed_picked_for_a_job_does_not_make_its_repetition_another(client):
    headers = ASYNC | {"Idempotency-Key": "once"}
    answers = [await client.get("/v1/models/v/samples", headers=headers) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"]


async def test_wait_shortens_the_deadline(client, lane):
    import time

    answer = await client.post("/v1/models/v/denoise", content=png(), headers={"Prefer": "wait=2"})
    assert answer.headers["preference-applied"] == "wait=2"
    assert lane.seen[0].deadline < time.time() + 3
