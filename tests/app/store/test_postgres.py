"""The same routes over PostgreSQL: every statement of the front is run once."""

import pytest

from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.store import keys
from app.core.store.database import engine, transaction
from tests.app.conftest import add_dataset, add_model, png

pytestmark = pytest.mark.anyio


@pytest.fixture
def home(home, postgres_database):
    engine.cache_clear()
    home(DATABASE_URL=postgres_database)
    return home


async def test_a_day_in_the_life_of_the_front(home, client):
    assert engine().dialect.name == "postgresql"
    for digest in ("a" * 64, "b" * 64):
        add_model("v", digest=digest)
    add_dataset("squares")
    body = {"family": "vae", "dataset": "squares", "name": "mine"}
    answers = [await client.post("/v1/trainings", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    job = answers[0].json()
    assert answers[1].json()["id"] == job["id"]
    with transaction() as conn:
        claim = jobs.claim(conn, job["id"], "worker:1")
        events.add_metrics(conn, job["id"], claim.token, 32, {"loss": 1.5})
    here = f"/v1/jobs/{job['id']}"
    assert (await client.get("/v1/jobs?status=running")).json()["data"][0]["metrics"] == {"loss": 1.5}
    assert (await client.get("/v1/models/mine/samples")).json()["code"] == "model-not-ready"
    with transaction() as conn:
        jobs.finish(conn, job["id"], claim.token, {"model": "mine"})
    assert '"succeeded"' in (await client.get(f"{here}/events")).text
    assert (await client.get(f"{here}/events", headers={"Last-Event-ID": "9" * 19})).status_code == 204
    assert (await client.post(f"{here}/cancel")).status_code == 409
    assert (await client.post("/v1/models/v@aaaaaaaa/denoise", content=png())).status_code == 200
    assert (await client.get("/v1/models")).json()["data"][0]["digest"] == "b" * 64
    assert len((await client.get("/v1/models/v")).json()["versions"]) == 2
    assert (await client.delete("/v1/models/v@bbbbbbbb")).status_code == 204
    assert (await client.get("/v1/models/v")).json()["digest"] == "a" * 64
    assert "squares" in (await client.get("/v1/datasets?limit=100")).text
    assert (await client.delete("/v1/datasets/squares")).status_code == 204
    made = await client.post("/v1/keys", json={"name": "ünï", "tenant": "t", "days": 1})
    headers = {"Authorization": f"Bearer {made.json()['token']}"}
    assert (await client.get("/v1/jobs", headers=headers)).json()["data"] == []
    assert keys.TOKEN.fullmatch(made.json()["token"])
    assert (await client.get("/readyz")).json()["status"] == "ok"
    assert 'jobs{kind="training",status="succeeded"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("path", ["/v1/jobs?cursor=%00", "/v1/models?cursor=%00", "/v1/datasets/%00", "/v1/models/%00"])
async def test_what_postgresql_cannot_hold_never_reaches_it(home, client, path):
    answer = await client.get(path)
    assert answer.status_code in (404, 422), answer.text
