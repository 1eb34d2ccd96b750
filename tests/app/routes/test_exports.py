"""model.onnx over HTTP: written once by a job, then a file; a failed export answers with its problem."""

import hashlib
import json

import pytest

from app.api.routes import exports
from app.core.errors import UnsupportedOperation
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import transaction
from tests.app.conftest import add_model

pytestmark = pytest.mark.anyio
DIGEST = "2" * 64
URL = "/v1/models/v/model.onnx"


@pytest.fixture
def model(app):
    add_model("v", digest=DIGEST)


def written(part: str, name: str | None = None) -> None:
    blobs.put(f"models/{DIGEST}/{part}.onnx", part.encode())
    facts = json.dumps({"part": part, "difference": 1.5e-7}).encode()
    blobs.put(f"models/{DIGEST}/{name or part}.onnx.json", facts)


async def test_a_file_that_exists_is_served_with_what_is_known_of_it(client, model):
    written("decoder")
    answer = await client.get(URL, params={"part": "decoder"})
    assert (answer.status_code, answer.content) == (200, b"decoder")
    assert answer.headers["x-export-difference"] == "1.5e-07" and "v-decoder-" in answer.headers["content-disposition"]
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await client.get(URL, params={"part": "decoder"}, headers=known)).status_code == 304


async def test_a_damaged_or_lost_file_is_written_again_instead_of_sent(client, model):
    key, facts = f"models/{DIGEST}/decoder.onnx", {"part": "decoder", "difference": 0.0}
    blobs.put(key, b"decoder")
    facts["sha256"] = hashlib.sha256(b"decoder").hexdigest()
    blobs.put(f"{key}.json", json.dumps(facts).encode())
    ask = {"params": {"part": "decoder"}, "headers": {"Prefer": "wait=0"}}
    assert (await client.get(URL, **ask)).content == b"decoder"
    for damage in (lambda: blobs.put(key, b"decodez", create_only=False), lambda: blobs.delete_prefix(key)):
        damage()
        answer = await client.get(URL, **ask)
        assert (answer.status_code, answer.json()["code"]) == (409, "model-not-ready"), answer.text
        assert answer.json()["job"]


async def test_one_job_writes_it_however_often_it_is_asked_for(client, model):
    answers = [await client.get(URL, headers={"Prefer": "wait=0"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [409, 409]
    assert answers[0].json()["code"] == "model-not-ready" and answers[0].headers["retry-after"] == "2"
    assert answers[0].json()["job"] == answers[1].json()["job"]
    written("encoder", "default")
    assert (await client.get(URL)).content == b"encoder"


async def test_the_problem_of_the_job_is_the_answer(client, model, monkeypatch):
    url = URL + "?part=judge"
    job = (await client.get(url, headers={"Prefer": "wait=0"})).json()["job"].rsplit("/", 1)[1]
    with transaction() as conn:
        claim = jobs.claim(conn, job, "here")
        problem = UnsupportedOperation("no such part", field="part", remedy="It has encoder.").problem()

    async def fail(seconds):
        with transaction() as conn:
            jobs.fail(conn, job, claim.token, problem)

    monkeypatch.setattr(exports.anyio, "sleep", fail)
    answer = await client.get(url)
    assert answer.status_code == 409 and answer.json()["remedy"] == "It has encoder."


async def test_parts_are_words_and_models_exist(client, model):
    assert (await client.get(URL + "?part=A%2F..")).status_code == 422
    assert (await client.get("/v1/models/none/model.onnx")).status_code == 404
