"""PUT /v1/models/{m}: what is a model file is promised a job, the rest refused before anything is kept."""

import json

import pytest

from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading
from tests.app.conftest import add_model

pytestmark = pytest.mark.anyio
SAFE = (20).to_bytes(8, "little") + b'{"a": 1}'
URL = "/v1/models/mine"


async def put(client, content=SAFE, card=None, name="file", **options):
    files = {name: ("model", content)}
    data = {} if card is None else {"card": card if isinstance(card, str) else json.dumps(card)}
    return await client.put(URL, files=files, data=data, **options)


async def test_a_file_and_its_card_become_a_job(client):
    answer = await put(client, b"\x08\x08 an onnx file", {"labels": ["a", "b"], "mean": 0.5, "output": "softmax"})
    assert answer.status_code == 202
    job = answer.json()
    assert job["kind"] == "model" and "upload" not in job["request"]
    assert job["request"]["card"] == {"labels": ["a", "b"], "mean": 0.5, "output": "softmax"}
    with reading() as conn:
        spec = jobs.get(conn, "local", job["id"])["spec"]
    assert spec["format"] == "onnx" and blobs.get(spec["upload"]) == b"\x08\x08 an onnx file"
    pending = await client.get(URL)
    assert pending.json()["ready"] is False and pending.json()["links"]["job"] == f"/v1/jobs/{job['id']}"


async def test_pickles_are_named_and_refused(client):
    for content in (b"PK\x03\x04archive/data.pkl", b"\x80\x04\x95"):
        answer = await put(client, content)
        assert answer.status_code == 415 and "pickle" in answer.json()["detail"]
    assert (await put(client, b"text")).status_code == 415
    assert blobs.list("uploads") == []


@pytest.mark.parametrize(
    ("card", "pointer"),
    [
        ({"mean": "half"}, "card/mean"),
        ({"labels": []}, "card/labels"),
        ({"labels": [""]}, "card/labels/0"),
        ({"layout": "chwn"}, "card/layout"),
        ({"colour": 1}, "card/colour"),
        ({"height": 0}, "card/height"),
        ({"family": "vae", "data": {"height": 10**6}}, "card/data"),
        ("[1]", None),
        ("{", None),
    ],
)
async def test_a_card_that_cannot_be_meant_names_its_field(client, card, pointer):
    answer = await put(client, card=card)
    assert answer.status_code == 422
    assert pointer is None or answer.json()["errors"][0]["pointer"].startswith(pointer)


async def test_size_media_and_names_are_checked(client, home):
    assert (await client.put(URL, content=b"x")).status_code == 415
    assert (await put(client, name="model")).status_code == 422
    assert (await client.put("/v1/models/a@01234567", files={"file": SAFE})).status_code == 422
    home(max_model_bytes=8)
    assert (await put(client)).status_code == 413


async def test_built_in_models_are_imported_by_name_or_when_first_asked_for(client):
    answer = await client.put("/v1/models/net?builtin=efficientnet-lite0")
    assert answer.status_code == 202 and answer.json()["request"]["builtin"] == "efficientnet-lite0"
    wrong = await client.put("/v1/models/net?builtin=efficientnet-lite")
    assert wrong.status_code == 422 and "efficientnet-lite0" in wrong.json()["remedy"]
    asked = [await client.post("/v1/models/efficientnet-lite0/classify", content=b"") for _ in range(2)]
    assert [one.status_code for one in asked] == [409, 409]
    assert asked[0].json()["code"] == "model-not-ready" and asked[0].json()["job"] == asked[1].json()["job"]


async def test_the_same_key_is_one_import(client):
    add_model("mine")
    answers = [await put(client, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].json()["id"] == answers[1].json()["id"] and len(blobs.list("uploads")) == 1
