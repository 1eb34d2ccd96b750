"""Quotas in work: seconds of compute of a key, seconds of jobs of a tenant, and what /v1/me says about them."""

import asyncio

import pytest
from sqlalchemy import update

from app.api.http.rate_limit import Rates
from app.core.calls.client import Answer
from app.core.errors import DeadlineExceeded, QuotaExceeded
from app.core.jobs import state
from app.core.store import keys
from app.core.store.database import now, transaction
from app.core.store.tables import jobs
from tests.app.conftest import add_model, png
from tests.app.http.test_auth import key

pytestmark = pytest.mark.anyio
DENOISE = "/v1/models/v/denoise"


@pytest.fixture
def budget(home):
    """Ask for this before `client`: one second of compute per minute."""
    home(require_keys="true", compute_seconds_per_minute=1)


@pytest.fixture
def slow_lane(lane, monkeypatch):
    """Each answer took 600 ms, three quarters of which belong to other calls."""

    async def submit(call):
        if lane.error:
            raise lane.error
        return Answer(images=[png()], timings={"decode": 400, "compute": 700, "encode": 100, "total": 9000}, share=0.25)

    monkeypatch.setattr(lane, "submit", submit)
    return lane


@pytest.fixture(autouse=True)
def same_minute(monkeypatch):
    """The minute of the budget does not end during a test."""
    monkeypatch.setattr("app.api.http.rate_limit.WINDOW", 10**6)


async def test_calls_are_charged_what_they_took(budget, slow_lane, client):
    add_model("v", tenant="owner")
    mine, other = key("owner"), key("owner")
    answers = [await client.post(DENOISE, content=png(), headers=mine) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[0].headers["ratelimit-policy"].split(", ")[1].startswith('"compute";q=1;w=')
    left = [answer.headers["ratelimit"].split(", ")[1].split(";")[1] for answer in answers]
    assert left == ["r=0", "r=0", "r=0"], "0.6 s of 1 s are left less than a second"
    problem = answers[2].json()
    assert problem["code"] == "quota-exceeded" and int(answers[2].headers["retry-after"]) > 0
    assert "1 s of compute per minute" in problem["detail"] and "respond-async" in problem["remedy"]
    assert (await client.post(DENOISE, content=png(), headers=other)).status_code == 200, "each key has its own"
    assert (await client.get("/v1/models", headers=mine)).status_code == 200, "what computes nothing goes on"
    me = (await client.get("/v1/me", headers=mine)).json()
    assert me["quotas"]["compute_seconds"]["used"] == 1.2 and me["quotas"]["compute_seconds"]["limit"] == 1
    assert me["quotas"]["requests"]["used"] > 0


async def test_a_call_past_its_deadline_is_charged_and_one_that_was_not_computed_is_not(budget, slow_lane, app, client):
    add_model("v", tenant="owner")
    mine = key("owner")
    slow_lane.error = QuotaExceeded("Anything else.")
    await client.post(DENOISE, content=png(), headers=mine)
    assert app.state.authenticator.rates.spent(ident(mine)).seconds == 0
    slow_lane.error = DeadlineExceeded("No worker answered before the deadline.")
    await client.post(DENOISE, content=png(), headers=mine)
    assert app.state.authenticator.rates.spent(ident(mine)).seconds > 0


def ident(headers: dict[str, str]) -> str:
    return headers["Authorization"].split("_")[1]


async def test_a_call_that_will_not_fit_is_refused_before():
    rates = Rates("100/minute", None, 10)
    rates.reserve("key", 6)
    with pytest.raises(QuotaExceeded, match=r"about 5.0 s .* 4.0 of 10 s"):
        rates.reserve("key", 5)
    rates.settle("key", 6, 2)
    rates.reserve("key", 5)
    rates.settle("key", 5, 5)
    with pytest.raises(QuotaExceeded):
        rates.reserve("key", 600)
    rates.reserve("fresh", 600)  # what costs more than a minute's seconds needs a fresh minute
    await rates.close()


async def test_fronts_share_the_count_through_the_broker(valkey):
    one, two = (Rates("100/minute", f"unix://{valkey.socket}", 10) for _ in range(2))
    for rates, seconds in ((one, 6), (two, 5)):
        rates.reserve("key", 1)
        rates.settle("key", 1, seconds)
        while rates.spent("key").sending:
            await asyncio.sleep(0.01)
    assert two.spent("key").seconds == 11
    with pytest.raises(QuotaExceeded):
        two.reserve("key", 0)
    valkey.stop()
    one.reserve("other", 1)
    one.settle("other", 1, 3)
    while one.spent("other").sending:
        await asyncio.sleep(0.01)
    one.reserve("other", 1)  # a broker that fails refuses nobody
    for rates in (one, two):
        await rates.close()


async def test_unknown_keys_of_one_address_soon_reach_no_database(keyed, app, client, monkeypatch):
    app.state.authenticator.rates = Rates("3/hour")
    looked_up = []
    find = keys.find
    monkeypatch.setattr(keys, "find", lambda conn, token: looked_up.append(token) or find(conn, token))
    statuses = []
    for number in range(6):
        headers = {"Authorization": f"Bearer an_{number:08x}_{'x' * 43}"}
        statuses.append((await client.get("/v1/models", headers=headers)).status_code)
    assert statuses == [401, 401, 401, 429, 429, 429] and len(looked_up) == 3


async def test_me_tells_the_key_its_scopes_and_the_use_of_its_tenant(keyed, app, client):
    add_model("v", tenant="owner")
    headers = key("owner", "read", "tenant-admin")
    await client.post("/v1/datasets?builtin=mnist5k", headers=key("owner"))
    me = (await client.get("/v1/me", headers=headers)).json()
    assert (me["tenant"], me["scopes"], me["key"]["id"]) == ("owner", ["read", "tenant-admin"], ident(headers))
    quotas = me["quotas"]
    assert quotas["jobs"] == {"limit": 1000, "used": 1, "window_seconds": None, "resets_in_seconds": None}
    assert quotas["stored_bytes"]["used"] > 0 and quotas["running_jobs"]["used"] == 0
    assert (await client.get("/v1/me")).status_code == 401


async def test_me_without_keys_is_the_local_tenant(client):
    me = (await client.get("/v1/me")).json()
    assert (me["key"], me["tenant"]) == (None, "local") and "requests" not in me["quotas"]


async def test_jobs_of_a_tenant_may_run_so_many_seconds_a_day(home, client):
    home(max_job_seconds_per_day=100)
    first = await client.post("/v1/datasets?builtin=mnist5k", headers={"Idempotency-Key": "one"})
    with transaction() as conn:
        state.claim(conn, first.json()["id"], "worker")
        conn.execute(update(jobs).values(claimed_at=now(conn) - 101))
    refused = await client.post("/v1/datasets?builtin=fontdigits")
    assert (refused.status_code, refused.json()["code"]) == (429, "quota-exceeded")
    again = await client.post("/v1/datasets?builtin=mnist5k", headers={"Idempotency-Key": "one"})
    assert again.json()["id"] == first.json()["id"], "a repetition gets its answer"
    used = (await client.get("/v1/me")).json()["quotas"]
    assert used["job_seconds_per_day"]["used"] >= 101 and used["running_jobs"]["used"] == 1


# ---- administrators of one tenant


async def test_a_tenant_admin_sees_and_makes_keys_of_its_tenant_only(keyed, client):
    admin = key("owner", "read", "tenant-admin")
    foreign = key("other", "read")
    listed = (await client.get("/v1/keys", headers=admin)).json()["data"]
    assert {row["tenant"] for row in listed} == {"owner"}
    made = await client.post("/v1/keys", json={"name": "pupil", "scopes": ["read"]}, headers=admin)
    assert made.status_code == 201 and made.json()["tenant"] == "owner"
    assert (await client.delete(f"/v1/keys/{made.json()['id']}", headers=admin)).status_code == 200
    assert (await client.delete(f"/v1/keys/{ident(foreign)}", headers=admin)).status_code == 404
    assert (await client.get("/v1/models", headers=foreign)).status_code == 200
    assert (await client.get("/metrics", headers=admin)).status_code == 403


@pytest.mark.parametrize(
    "body, scope",
    [
        ({"tenant": "other", "scopes": ["read"]}, "admin"),
        ({"scopes": ["read", "write"]}, "write"),
        ({"scopes": ["admin"]}, "admin"),
    ],
)
async def test_a_tenant_admin_gives_no_more_than_it_has(keyed, client, body, scope):
    answer = await client.post("/v1/keys", json={"name": "n"} | body, headers=key("owner", "read", "tenant-admin"))
    assert (answer.status_code, answer.json()["scope"]) == (403, scope)


async def test_a_tenant_admin_revokes_no_administrator_of_all(keyed, client):
    operator = key("owner", "admin")
    answer = await client.delete(f"/v1/keys/{ident(operator)}", headers=key("owner", "tenant-admin"))
    assert answer.status_code == 403
    assert (await client.get("/v1/keys", headers=operator)).status_code == 200


async def test_who_may_only_write_follows_its_own_job(keyed, client):
    writer = key("owner", "write")
    job = (await client.post("/v1/datasets?builtin=mnist5k", headers=writer)).json()["id"]
    assert (await client.get(f"/v1/jobs/{job}", headers=writer)).status_code == 200
    assert (await client.get("/v1/jobs", headers=writer)).status_code == 403
