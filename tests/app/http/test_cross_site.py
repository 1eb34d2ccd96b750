"""Pages of other sites: what a browser may ask for them without a key, and the origins that are allowed to use one."""

import pytest

from tests.app.conftest import add_model, png
from tests.app.http.test_auth import key

pytestmark = pytest.mark.anyio
SAMPLES = "/v1/models/v/samples?n=2"
PAGE = "https://page.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, idempotency-key, prefer",
}
FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    {"Origin": PAGE},
]
OWN = [
    {},
    {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
    {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"},
]


@pytest.fixture
def allowed(home):
    """Ask for this before `client`."""
    home(allowed_origins=f'["{PAGE}"]')


@pytest.fixture
def any_origin(home):
    home(allowed_origins='["*"]')


@pytest.mark.parametrize("headers", FOREIGN)
async def test_pages_of_other_sites_start_no_computation(client, lane, headers):
    add_model("v")
    for path in (SAMPLES, "/v1/models/nothing", "/v1/models"):
        answer = await client.get(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
        assert answer.json()["title"] == "Origin or host not allowed" and not lane.seen


@pytest.mark.parametrize("headers", OWN)
async def test_own_pages_links_and_programs_are_answered(client, headers):
    add_model("v")
    answer = await client.get(SAMPLES, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


async def test_a_page_of_an_allowed_origin_uses_its_key(allowed, keyed, client):
    add_model("v", tenant="owner")
    preflight = await client.options("/v1/models/v/denoise", headers=PREFLIGHT)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "POST" in preflight.headers["access-control-allow-methods"]
    headers = key("owner") | {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    answer = await client.post("/v1/models/v/denoise", content=png(), headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    readable = answer.headers["access-control-expose-headers"].lower().split(", ")
    assert {"ratelimit", "ratelimit-policy", "location", "etag", "server-timing"} <= set(readable)
    assert "Origin" in answer.headers["vary"] and "access-control-allow-credentials" not in answer.headers
    refused = await client.get("/v1/models/none", headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


async def test_preflights_of_other_origins_are_refused(allowed, keyed, client):
    for change in ({"Origin": "https://evil.example"}, {"Access-Control-Request-Headers": "x-evil"}):
        answer = await client.options("/v1/models/v/denoise", headers=PREFLIGHT | change)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
        assert "ANAMORPH_ALLOWED_ORIGINS" in answer.json()["remedy"]
    headers = key("owner") | {"Origin": "https://evil.example"}
    assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=headers)).headers


async def test_without_allowed_origins_a_preflight_says_how_to_allow_one(client):
    answer = await client.options("/v1/models/v/denoise", headers=PREFLIGHT)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross-site")
    assert "vary" not in (await client.get("/v1/models")).headers


async def test_an_allowed_origin_needs_no_key_where_none_is_required(allowed, client):
    headers = {"Origin": PAGE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    assert (await client.get("/v1/models", headers=headers)).status_code == 200
    assert (await client.get("/v1/models", headers=headers | {"Origin": "https://evil.example"})).status_code == 403


async def test_any_origin_means_any_that_has_a_key(any_origin, client):
    assert (await client.get("/v1/models", headers={"Origin": PAGE})).status_code == 403
    answer = await client.get("/v1/models", headers=key("owner") | {"Origin": PAGE})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert "access-control-allow-credentials" not in answer.headers
