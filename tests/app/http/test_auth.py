"""Keys, scopes and tenants: what each route says to the owner, to another tenant, and to nobody."""

import asyncio
import json
import re
from types import SimpleNamespace

import pytest

from app.core.store import keys
from app.core.store.database import reading, transaction
from tests.app.conftest import add_dataset, add_model, png
from tests.app.small_catalog import CATALOG

pytestmark = pytest.mark.anyio


def key(tenant: str, *scopes: str, days: float | None = None) -> dict[str, str]:
    """The header of a fresh key."""
    with transaction() as conn:
        token, _ = keys.mint(conn, tenant, "test", scopes or ("read", "write"), days)
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
async def house(keyed, app, client):
    """Two tenants; the owner has a model, a dataset and a canceled job."""
    owner, other = key("owner"), key("other")
    add_model("v", tenant="owner")
    add_dataset("squares", tenant="owner")
    body = {"family": "vae", "dataset": "squares", "name": "mine"}
    job = (await client.post("/v1/trainings", json=body, headers=owner)).json()["id"]
    await client.post(f"/v1/jobs/{job}/cancel", headers=owner)  # else watching it would not end
    return SimpleNamespace(client=client, app=app, owner=owner, other=other, job=job)


def every_route() -> list[tuple[str, str]]:
    """(method, path) of everything under /v1, from the description of the API."""
    from app.main import create_app

    paths = create_app(CATALOG).openapi()["paths"]
    return [(method.upper(), path) for path, methods in paths.items() if path.startswith("/v1") for method in methods]


ROUTES = every_route()
SHARED = ("/families/", "/attacks/", "/oracles/")
ELSEWHERE = ("/perturbations/",)  # tests/app/routes/test_perturbations.py makes one and asks as another tenant
PRIVATE = [
    (method, path)
    for method, path in ROUTES
    if "{" in path and method != "PUT" and not any(part in path for part in SHARED + ELSEWHERE)
]  # who puts a model makes one in a tenant of its own


def fill(path: str, house) -> str:
    id = "00000000" if path.startswith("/v1/keys") else house.job
    return path.format(m="v", d="squares", id=id, p=id, o="none", name="vae", images=1)


@pytest.mark.parametrize("method, path", PRIVATE)
async def test_resources_of_another_tenant_are_not_found(house, method, path):
    """The owner gets past the tenant's wall, the other gets what an unknown id gets, word for word."""
    body = {"content": png()} if method == "POST" and "/models/" in path else {}
    body = {"json": {"id": "0" * 16, "answer": 0}} if path.endswith("/quiz") and method == "POST" else body
    query = {"method": "fgsm"} if path.endswith("/attack") else {}
    there = fill(path, house)
    theirs = await house.client.request(method, there, headers=house.other, params=query, **body)
    if path.startswith("/v1/keys"):
        assert theirs.status_code == 403
        return
    assert theirs.status_code == 404, theirs.text
    unknown = there.replace("/v/", "/w/").replace("squares", "rounds").replace(house.job, "0" * 36)
    unknown = "/v1/models/w" if unknown == "/v1/models/v" else unknown
    absent = await house.client.request(method, unknown, headers=house.other, params=query, **body)
    strip = {"request_id": None, "remedy": None}
    said = theirs.text.replace("Model v ", "Model w ").replace("squares", "rounds").replace(house.job, "0" * 36)
    assert json.loads(said) | strip == absent.json() | strip
    assert not {"v", "squares"} & set(re.findall(r"[\w-]+", theirs.json().get("remedy", "")))
    owner = house.owner | {"Prefer": "wait=0"}  # not for the export that nobody makes here
    ours = await house.client.request(method, there, headers=owner, params=query, **body)
    assert ours.status_code != 401 and ours.json()["detail"] != theirs.json()["detail"] if ours.is_error else True


async def test_lists_show_a_tenant_its_own(house):
    for path, name in (("models", "v"), ("datasets", "squares"), ("jobs", house.job)):
        ours = (await house.client.get(f"/v1/{path}?limit=100", headers=house.owner)).text
        theirs = (await house.client.get(f"/v1/{path}?limit=100", headers=house.other)).text
        assert f'"{name}"' in ours and f'"{name}"' not in theirs


async def test_two_tenants_use_one_name_and_one_idempotency_key(house):
    body = {"family": "vae", "dataset": "mnist5k", "name": "mine"}
    headers = {"Idempotency-Key": "same"}
    jobs = [
        (await house.client.post("/v1/trainings", json=body, headers=who | headers)).json()["id"]
        for who in (house.owner, house.other)
    ]
    assert jobs[0] != jobs[1]


SCOPES = [
    ("GET", "/v1/models", "read"),
    ("GET", "/v1/models/v/samples", "read"),
    ("POST", "/v1/models/v/denoise", "read"),
    ("DELETE", "/v1/models/v", "write"),
    ("POST", "/v1/trainings", "write"),
    ("POST", "/v1/datasets?builtin=mnist5k", "write"),
    ("POST", "/v1/jobs/{job}/cancel", "write"),
    ("GET", "/v1/keys", "tenant-admin"),
    ("GET", "/metrics", "admin"),
]


@pytest.mark.parametrize("method, path, scope", SCOPES)
async def test_each_route_needs_its_scope(house, method, path, scope):
    body = {"json": {"family": "vae", "dataset": "mnist5k"}} if "trainings" in path else {"content": png()}
    body = body if method == "POST" else {}
    path = path.format(job=house.job)
    others = key("owner", *[name for name in keys.SCOPES if name not in (scope, "admin")])
    answer = await house.client.request(method, path, headers=others, **body)
    assert (answer.status_code, answer.json()["scope"]) == (403, scope)
    answer = await house.client.request(method, path, headers=key("owner", scope), **body)
    assert answer.status_code < 300, answer.text


async def test_a_call_that_becomes_a_job_needs_to_write(house):
    headers = key("owner", "read") | {"Prefer": "respond-async"}
    answer = await house.client.post("/v1/models/v/denoise", content=png(), headers=headers)
    assert (answer.status_code, answer.json()["scope"]) == (403, "write")


async def test_keys_are_made_listed_and_revoked_by_administrators(house):
    admin = key("owner", "admin")
    made = await house.client.post("/v1/keys", json={"name": "laptop", "tenant": "third"}, headers=admin)
    assert made.status_code == 201 and made.json()["scopes"] == ["read", "write"]
    token = made.json()["token"]
    headers = {"Authorization": f"Bearer {token}"}
    assert (await house.client.get("/v1/models", headers=headers)).status_code == 200
    listed = await house.client.get("/v1/keys", headers=admin)
    assert made.json()["id"] in listed.text and token not in listed.text and token.split("_", 2)[2] not in listed.text
    revoked = await house.client.delete(f"/v1/keys/{made.json()['id']}", headers=admin)
    assert revoked.json()["revoked_at"]
    assert (await house.client.get("/v1/models", headers=headers)).status_code == 401


async def test_an_expired_key_is_refused(house):
    assert (await house.client.get("/v1/models", headers=key("owner", days=-1))).status_code == 401


async def test_the_last_use_of_a_key_is_recorded(house):
    with reading() as conn:
        used = {row["id"]: row["last_used_at"] for row in keys.every(conn)}
    ident = house.owner["Authorization"].split("_")[1]
    assert used[ident] is not None


async def test_the_bootstrap_key_may_do_everything(home, keyed, client):
    home(bootstrap_key="from-outside")
    headers = {"Authorization": "Bearer from-outside"}
    assert (await client.get("/v1/keys", headers=headers)).status_code == 200
    assert (await client.get("/v1/keys", headers={"Authorization": "Bearer from-outsidf"})).status_code == 401


async def test_a_wrong_key_is_refused_even_if_none_is_required(client):
    assert (await client.get("/v1/models")).status_code == 200
    assert (await client.get("/v1/models", headers={"Authorization": "Bearer nonsense"})).status_code == 401
    assert (await client.get("/v1/models", headers=key("local", "read"))).status_code == 200


CROSS = [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}]


@pytest.mark.parametrize("headers", CROSS)
async def test_pages_of_other_sites_cannot_act_without_a_key(client, headers):
    answer = await client.post("/v1/datasets?builtin=mnist5k", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert (await client.post("/v1/datasets?builtin=mnist5k", headers=own)).status_code == 202


async def test_a_local_service_answers_only_to_local_host_names(client):
    answer = await client.get("/v1/models", headers={"Host": "rebound.example:8000"})
    assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
    for host in ("localhost", "127.0.0.1:1", "[::1]:8000"):
        assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200, host


async def test_too_many_requests_are_refused_with_a_retry_time(home, keyed, app, client):
    from app.api.http.rate_limit import Rates

    app.state.authenticator.rates = Rates("3/hour")
    one, two = key("owner"), key("owner")
    answers = [await client.get("/v1/models", headers=one) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["ratelimit"].startswith('"requests";r=2;t=')
    assert answers[3].json()["code"] == "rate-limited" and int(answers[3].headers["retry-after"]) > 0
    assert (await client.get("/v1/models", headers=two)).status_code == 200, "each key has its own count"
    tries = [(await client.get("/v1/models")).status_code for _ in range(4)]
    assert tries == [401, 401, 401, 429], "guessing is counted too"


def test_fronts_that_share_a_broker_share_the_count(valkey):
    from app.api.http.rate_limit import Rates
    from app.core.errors import RateLimited

    async def scenario():
        fronts = [Rates("3/hour", f"unix://{valkey.socket}") for _ in range(2)]
        for turn in range(3):
            await fronts[turn % 2].take("key")
        with pytest.raises(RateLimited):
            await fronts[1].take("key")
        valkey.stop()
        assert await fronts[0].take("key") == {}, "a count that cannot be kept refuses nobody"
        for front in fronts:
            await front.close()

    asyncio.run(scenario())
