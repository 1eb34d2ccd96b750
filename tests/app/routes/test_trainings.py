"""POST /v1/trainings: what is accepted, what is refused and by which name, once however often it is sent."""

import asyncio

import pytest
from sqlalchemy import func, select

from app.core.jobs import workers as worker_rows
from app.core.store.database import reading, transaction
from app.core.store.tables import idempotency, jobs
from tests.app.conftest import add_dataset, add_model

pytestmark = pytest.mark.anyio
BODY = {"family": "vae", "dataset": "squares", "name": "mine"}


@pytest.fixture(autouse=True)
def dataset(app):
    add_dataset("squares")
    add_dataset("plain", layout="plain")


def rows(table) -> int:
    with reading() as conn:
        return conn.execute(select(func.count()).select_from(table)).scalar_one()


async def test_a_training_is_a_job_with_a_completed_config(client):
    answer = await client.post("/v1/trainings", json=BODY | {"config": {"latent_dim": 8}, "seed": 3})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" and int(answer.headers["retry-after"]) > 0
    assert (job["kind"], job["status"], job["attempt"], job["queue_position"]) == ("training", "queued", 0, 1)
    assert job["request"] == BODY | {
        "seed": 3,
        "config": {"images": None, "latent_dim": 8, "learning_rate": 0.001, "body": "conv"},
    }
    expected = {"id", "kind", "status", "progress", "queue_position", "attempt", "metrics", "error", "result", "links"}
    assert expected <= job.keys()
    assert job.pop("forecast") is None
    assert (await client.get(job["links"]["self"])).json() == job


async def test_a_training_may_ask_for_the_devices_that_a_worker_has(client):
    usage = [{"device": f"cuda:{index}", "jobs": []} for index in range(4)]
    with transaction() as conn:
        worker_rows.beat(conn, "worker:2", ["train"], devices=usage)
    job = (await client.post("/v1/trainings", json=BODY | {"devices": 4})).json()
    assert job["request"]["devices"] == 4
    answer = await client.post("/v1/trainings", json=BODY | {"devices": 5})
    assert answer.status_code == 422 and "at most 4" in answer.json()["detail"]


async def test_a_name_is_made_from_family_and_dataset(client):
    answer = await client.post("/v1/trainings", json={"family": "vae", "dataset": "mnist5k"})
    assert answer.json()["request"]["name"] == "vae-mnist5k"


REFUSED = [
    ({"config": {"latent_dims": 8}}, 422, "invalid-config", "/config/latent_dims"),
    ({"config": {"latent_dim": 0}}, 422, "invalid-config", "/config/latent_dim"),
    ({"config": {"latent_dim": "8"}}, 422, "invalid-config", "/config/latent_dim"),
    ({"config": {"latent_dim": True}}, 422, "invalid-config", "/config/latent_dim"),
    ({"config": {"learning_rate": 0}}, 422, "invalid-config", "/config/learning_rate"),
    ({"config": {"body": "rnn"}}, 422, "invalid-config", "/config/body"),
    ({"config": []}, 422, "invalid-request", "/config"),
    ({"family": "vea"}, 422, "invalid-config", "/family"),
    ({"family": 7}, 422, "invalid-request", "/family"),
    ({"dataset": "sqares"}, 404, "not-found", None),
    ({"family": "classifier", "dataset": "plain"}, 422, "invalid-dataset", "/dataset"),
    ({"family": "pix2pix"}, 422, "invalid-dataset", "/dataset"),
    ({"family": "pix2pix", "dataset": "mnist5k"}, 422, "invalid-dataset", "/dataset"),
    ({"name": "a/b"}, 422, "invalid-request", "/name"),
    ({"name": ""}, 422, "invalid-request", "/name"),
    ({"seed": "3"}, 422, "invalid-request", "/seed"),
    ({"devices": 0}, 422, "invalid-request", "/devices"),
    ({"devices": "2"}, 422, "invalid-request", "/devices"),
    ({"devices": 2}, 422, "invalid-request", "/devices"),  # the worker has one
    ({"seed": -1}, 422, "invalid-request", "/seed"),
    ({"seed": 2**63}, 422, "invalid-request", "/seed"),
    ({"init_from": "nobody"}, 404, "not-found", None),
    ({"fork_from": "nobody"}, 404, "not-found", None),
    ({"fork_from": {"job": "nobody"}}, 404, "not-found", None),
    ({"fork_from": {"images": 3}}, 422, "invalid-request", "/fork_from/job"),
    ({"fork_from": {"job": "nobody", "images": -1}}, 422, "invalid-request", "/fork_from/images"),
    ({"fork_from": {"job": "nobody", "step": 1}}, 422, "invalid-request", "/fork_from/step"),
    ({"fork_from": 3}, 422, "invalid-request", "/fork_from"),
    ({"fork_from": "nobody", "init_from": "nobody"}, 422, "invalid-request", "/fork_from"),
    ({"family": None}, 422, "invalid-request", "/family"),
    ({"dataset": None}, 422, "invalid-request", "/dataset"),
    ({"colour": 1}, 422, "invalid-request", "/colour"),
]


@pytest.mark.parametrize("change, status, code, pointer", REFUSED)
async def test_what_cannot_be_trained_is_refused_by_name(client, change, status, code, pointer):
    answer = await client.post("/v1/trainings", json=BODY | change)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    if pointer:
        assert [fault["pointer"] for fault in problem["errors"]] == [pointer]
    assert rows(jobs) == 0


async def test_every_fault_of_a_config_is_told_at_once(client):
    answer = await client.post("/v1/trainings", json=BODY | {"config": {"latent_dim": 0, "body": 1, "depth": 2}})
    assert sorted(fault["pointer"] for fault in answer.json()["errors"]) == [
        "/config/body",
        "/config/depth",
        "/config/latent_dim",
    ]


async def test_the_nearest_names_are_offered(client):
    assert (await client.post("/v1/trainings", json=BODY | {"family": "vea"})).json()["remedy"] == "Did you mean vae?"
    remedy = (await client.post("/v1/trainings", json=BODY | {"dataset": "sqares"})).json()["remedy"]
    assert remedy == "Did you mean squares?"


async def test_a_training_may_start_from_a_model(client):
    add_model("old")
    answer = await client.post("/v1/trainings", json=BODY | {"init_from": "old"})
    assert answer.json()["request"]["init_from"] == "old"


def ended(job_id: str, *images: int, result: dict | None = None) -> None:
    """The job has succeeded and kept checkpoints at these points."""
    entries = [{"key": f"jobs/{job_id}/1/checkpoint-{count}.safetensors", "images": count} for count in images]
    with transaction() as conn:
        ref = {"images": images[-1], "kept": entries[-1:], "marks": entries} if images else None
        progress = {"images": images[-1], "total": images[-1]} if images else None
        values = {"state": "succeeded", "checkpoint": ref, "result": result, "progress": progress}
        conn.execute(jobs.update().where(jobs.c.id == job_id).values(**values))


async def test_a_fork_inherits_what_it_does_not_give(client):
    origin = (await client.post("/v1/trainings", json=BODY | {"config": {"latent_dim": 8}, "seed": 3})).json()
    ended(origin["id"], 64, 128)
    fork = {"job": origin["id"], "images": 64}
    answer = await client.post("/v1/trainings", json={"fork_from": fork, "config": {"learning_rate": 0.01}})
    assert answer.status_code == 202, answer.text
    asked = answer.json()["request"]
    assert (asked["family"], asked["dataset"], asked["seed"], asked["name"]) == ("vae", "squares", 3, "vae-squares")
    assert (asked["config"]["latent_dim"], asked["config"]["learning_rate"]) == (8, 0.01)
    assert asked["fork_from"] == fork
    plain = await client.post("/v1/trainings", json=BODY | {"fork_from": origin["id"], "seed": 4})
    asked = plain.json()["request"]
    assert (asked["fork_from"], asked["seed"]) == ({"job": origin["id"]}, 4)


async def test_a_fork_with_an_effort_keeps_the_settings_of_the_model_but_its_length(client):
    origin = (await client.post("/v1/trainings", json=BODY | {"config": {"images": 128}})).json()
    ended(origin["id"], 32, 64, 128, result={"config": {"images": 128, "latent_dim": 16, "effort": "lesson"}})
    answer = await client.post("/v1/trainings", json={"fork_from": origin["id"], "config": {"effort": "good"}})
    asked = answer.json()["request"]
    assert asked["config"] == {"latent_dim": 16, "effort": "good"}
    assert asked["fork_from"] == {"job": origin["id"]}
    plain = await client.post("/v1/trainings", json={"fork_from": origin["id"], "config": {"latent_dim": 8}})
    assert plain.json()["request"]["config"] == {"images": 128, "latent_dim": 8, "effort": "lesson"}


async def test_a_fork_with_an_effort_starts_where_the_longer_training_would_pass(client, app, monkeypatch):
    monkeypatch.setitem(app.state.catalog["families"]["vae"], "length_free_until", 0.5)
    origin = (await client.post("/v1/trainings", json=BODY)).json()
    ended(origin["id"], 32, 64, 128)
    asked = (await client.post("/v1/trainings", json={"fork_from": origin["id"], "config": {"effort": "good"}})).json()
    assert asked["request"]["fork_from"] == {"job": origin["id"], "images": 64}
    given = {"fork_from": {"job": origin["id"], "images": 128}, "config": {"effort": "good"}}
    asked = (await client.post("/v1/trainings", json=given)).json()
    assert asked["request"]["fork_from"]["images"] == 128
    longer = {"fork_from": origin["id"], "config": {"images": 500}}
    assert (await client.post("/v1/trainings", json=longer)).json()["request"]["fork_from"] == {"job": origin["id"]}


async def test_a_fork_starts_where_a_checkpoint_is_kept(client):
    origin = (await client.post("/v1/trainings", json=BODY)).json()
    ended(origin["id"], 64, 128)
    answer = await client.post("/v1/trainings", json={"fork_from": {"job": origin["id"], "images": 65}})
    problem = answer.json()
    assert (answer.status_code, problem["errors"][0]["pointer"]) == (422, "/fork_from/images")
    assert "64 or 128 images" in problem["remedy"]
    ended(origin["id"])
    answer = await client.post("/v1/trainings", json={"fork_from": origin["id"]})
    assert answer.status_code == 422 and "7 days" in answer.json()["remedy"]


async def test_fifty_clients_racing_with_one_key_make_one_job(client):
    async def one():
        return await client.post("/v1/trainings", json=BODY, headers={"Idempotency-Key": "race"})

    answers = await asyncio.gather(*[one() for _ in range(50)])
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert (rows(jobs), rows(idempotency)) == (1, 1)


async def test_a_key_stands_for_one_request(client):
    headers = {"Idempotency-Key": "k"}
    await client.post("/v1/trainings", json=BODY, headers=headers)
    answer = await client.post("/v1/trainings", json=BODY | {"seed": 1}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency-mismatch")
    same = await client.post("/v1/trainings", json=BODY | {"config": {"latent_dim": 32}}, headers=headers)
    assert same.headers["idempotency-replayed"] == "true", "a default written out is the same request"


async def test_a_repetition_is_answered_even_when_its_dataset_is_gone_by_now(client):
    headers = {"Idempotency-Key": "k"}
    first = await client.post("/v1/trainings", json=BODY, headers=headers)
    await client.delete("/v1/datasets/squares")
    again = await client.post("/v1/trainings", json=BODY, headers=headers)
    assert again.json()["id"] == first.json()["id"]


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256])
async def test_a_key_is_visible_ascii(client, key):
    answer = await client.post("/v1/trainings", json=BODY, headers={"Idempotency-Key": key.encode()})
    assert answer.status_code == 422, answer.text


async def test_a_refused_request_does_not_use_its_key_up(client):
    headers = {"Idempotency-Key": "k"}
    assert (await client.post("/v1/trainings", json=BODY | {"dataset": "later"}, headers=headers)).status_code == 404
    add_dataset("later")
    assert (await client.post("/v1/trainings", json=BODY | {"dataset": "later"}, headers=headers)).status_code == 202


async def test_no_more_jobs_than_a_tenant_may_have(home, client):
    home(max_jobs_per_tenant=1)
    assert (await client.post("/v1/trainings", json=BODY)).status_code == 202
    answer = await client.post("/v1/trainings", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (429, "quota-exceeded")
    assert answer.headers["retry-after"]


async def test_a_model_being_trained_is_not_ready_and_says_where_to_wait(client):
    job = (await client.post("/v1/trainings", json=BODY)).json()
    answer = await client.post("/v1/models/mine/denoise", content=b"x")
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (409, "model-not-ready")
    assert problem["job"] == f"/v1/jobs/{job['id']}"
    look = (await client.get("/v1/models/mine")).json()
    assert (look["ready"], look["links"]["job"]) == (False, f"/v1/jobs/{job['id']}")
    with transaction() as conn:
        conn.execute(jobs.update().values(state="failed"))
    assert (await client.post("/v1/models/mine/denoise", content=b"x")).status_code == 404
