"""Universal perturbations over HTTP: what is refused before a job is made, what is listed, sent and deleted."""

import hashlib

import numpy as np
import pytest

from app.core.store import blobs, integrity
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import transaction
from tests.app.conftest import add_dataset, add_model, npy, png

pytestmark = pytest.mark.anyio
FACTS = {
    "digest": "d" * 64, "model": "c", "version": "c" * 64, "dataset": "squares", "dataset_digest": "e" * 64,
    "method": "sgd", "norm": "linf", "eps": 0.1, "seed": 0, "shape": [1, 8, 8], "linf_255": 25, "l2": 0.4,
    "fooling": {}, "controls": {}, "dominant": {}, "config": {}, "notes": [],
}  # fmt: skip
FILES = {"delta.npy": npy(np.zeros((1, 8, 8))), "picture.png": png(1), "examples.png": png(2)}
FACTS["digest"] = hashlib.sha256(integrity.undigested(FACTS) + FILES["delta.npy"]).hexdigest()


@pytest.fixture
def things(app):
    add_model("c", "classifier")
    add_model("v")
    add_dataset("squares")


def keep(name: str, tenant: str = "local") -> None:
    for file, data in FILES.items():
        blobs.put(perturbation_rows.key(FACTS["digest"], file), data, create_only=False)
    with transaction() as conn:
        perturbation_rows.register(conn, tenant, name, FACTS, 10, "j")


async def test_a_fit_is_a_job_with_its_settings_completed(client, things):
    body = {"model": "c", "dataset": "squares", "eps": "10/255", "steps": 7, "seed": 3, "name": "shift"}
    key = {"Idempotency-Key": "once"}
    answer = await client.post("/v1/perturbations", json=body, headers=key)
    job = answer.json()
    assert answer.status_code == 202 and job["kind"] == "perturbation"
    assert job["request"]["config"] == {"method": "sgd", "eps": "10/255", "target": None, "steps": 7}
    assert job["request"]["model"].startswith("c@")
    assert (await client.post("/v1/perturbations", json=body, headers=key)).json()["id"] == job["id"]
    other = await client.post("/v1/perturbations", json=body | {"seed": 4}, headers=key)
    assert other.json()["code"] == "idempotency-mismatch"


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"model": "v"}, "unsupported-operation", "/model"),
        ({"model": "nobody"}, "not-found", "/model"),
        ({"dataset": "nothing"}, "not-found", "/dataset"),
        ({"eps": -1}, "invalid-request", "eps"),
        ({"steps": 0}, "invalid-request", "steps"),
        ({"method": "magic"}, "invalid-request", "/method"),
        ({"stepz": 3}, "invalid-request", "/stepz"),
        ({"name": "taken"}, "conflict", "/name"),
    ],
)
async def test_what_cannot_work_is_refused_by_name(client, things, change, code, field):
    keep("taken")
    answer = await client.post("/v1/perturbations", json={"model": "c", "dataset": "squares"} | change)
    assert answer.json()["code"] == code, answer.json()
    assert field is None or answer.json()["errors"][0]["pointer"] == field


async def test_they_are_listed_looked_at_and_deleted_inside_a_tenant(client, things):
    keep("a")
    keep("b")
    keep("a", "others")
    page = (await client.get("/v1/perturbations?limit=1")).json()
    assert [row["name"] for row in page["data"]] == ["a"] and page["next_cursor"] == "a"
    assert (await client.get("/v1/perturbations?cursor=a")).json()["data"][0]["name"] == "b"
    one = (await client.get("/v1/perturbations/a")).json()
    assert one["version"] == "c" * 64 and one["links"]["apply"] == "/v1/perturbations/a/apply"
    for name, media in {"delta.npy": "application/x-npy", "picture.png": "image/png"}.items():
        file = await client.get(f"/v1/perturbations/a/{name}")
        assert file.content == FILES[name] and file.headers["content-type"] == media
    assert (await client.delete("/v1/perturbations/a")).status_code == 204
    assert (await client.get("/v1/perturbations/a")).status_code == 404
    assert blobs.exists(perturbation_rows.key(FACTS["digest"], "delta.npy"))
    await client.delete("/v1/perturbations/b")
    assert blobs.exists(perturbation_rows.key(FACTS["digest"], "delta.npy")), "another tenant has it still"
    missing = (await client.get("/v1/perturbations/aa")).json()
    assert missing["code"] == "not-found"


async def test_images_go_to_the_worker_with_the_model_to_ask(client, things, lane):
    keep("a")
    answer = await client.post("/v1/perturbations/a/apply?model=c", content=png(1), headers={"Accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    call = lane.seen[-1]
    assert call.operation == "apply_perturbation" and call.params["perturbation"] == FACTS["digest"]
    assert len(call.params["model"]) == 64
    told = (
        await client.post("/v1/perturbations/a/apply", content=png(1), headers={"Accept": "application/json"})
    ).json()
    assert told["perturbation"] == "a" and told["image"]
    refused = await client.post("/v1/perturbations/a/apply?model=v", content=png(1))
    assert refused.json()["code"] == "unsupported-operation"
    assert (await client.post("/v1/perturbations/a/apply", content=b"text")).status_code == 422
    assert (await client.post("/v1/perturbations/none/apply", content=png(1))).status_code == 404


@pytest.mark.parametrize("name", FILES)
async def test_a_damaged_or_lost_file_is_refused(client, things, name):
    keep("a")
    key = perturbation_rows.key(FACTS["digest"], name)
    blobs.put(key, FILES[name][:-20] + b"?" + FILES[name][-19:], create_only=False)
    answer = await client.get(f"/v1/perturbations/a/{name}")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage-damaged"), answer.text
    blobs.delete_prefix(key)
    answer = await client.get(f"/v1/perturbations/a/{name}")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage-damaged"), answer.text
    assert "anamorph doctor --blobs" in answer.json()["remedy"]
