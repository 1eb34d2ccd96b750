"""Health, numbers, pages for people, headers every answer has; and that the front stays free of torch."""

import hashlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from app.api.http.error_pages import ADVICE
from app.api.routes import health
from app.api.routes.docs import STATIC
from app.core.errors import CODES
from app.core.jobs.workers import leave
from app.core.store.database import transaction
from app.main import create_app
from tests.app.conftest import add_model, png

pytestmark = pytest.mark.anyio
VENDORED = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
    "favicon-32x32.png": "3ed612f41e050ca5e7000cad6f1cbe7e7da39f65fca99c02e99e6591056e5837",
}


async def test_a_living_front_says_so_whatever_else_is_down(client, lane):
    lane.alive = False
    assert (await client.get("/livez")).json()["status"] == "ok"


async def test_ready_means_that_every_part_answers(client, lane):
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok"), ready.text
    lane.alive = False
    assert (await client.get("/readyz")).json()["checks"]["broker"] == "does not answer"
    lane.alive = True
    with transaction() as conn:
        leave(conn, "worker:1")
    degraded = await client.get("/readyz")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert degraded.json()["checks"]["workers:train"] == "none"
    assert degraded.json()["checks"]["workers:infer"] == "ok", "it says over the broker that it lives"


async def test_ready_says_that_inference_workers_are_missing_or_late(client, lane):
    lane.live["worker:1"] = {"late": 12.3}
    degraded = await client.get("/readyz")
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert degraded.json()["checks"]["workers:infer"] == "late for 12 s"
    lane.live.clear()
    assert (await client.get("/readyz")).json()["checks"]["workers:infer"] == "none"


async def test_a_locked_database_stops_no_calls_and_makes_the_service_degraded(client, lane, tmp_path, monkeypatch):
    add_model("digits")
    monkeypatch.setattr(health, "WRITE_SECONDS", 0.2)
    monkeypatch.setattr(health, "WRITES", health.WriteProbe())
    with transaction():  # another writer
        degraded = await client.get("/readyz")
        assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
        assert degraded.json()["checks"]["database_writes"].startswith("locked")
        assert (await client.get("/v1/models/digits/samples?n=1")).status_code == 200
    monkeypatch.setattr(health, "WRITES", health.WriteProbe())
    assert (await client.get("/readyz")).json()["status"] == "ok"


async def test_a_full_database_makes_the_service_degraded(client, monkeypatch):
    def full(conn):
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr(health, "WRITES", health.WriteProbe())
    monkeypatch.setattr(health.worker_rows, "write_probe", full)
    checks = (await client.get("/readyz")).json()["checks"]
    assert checks["database_writes"] == "The database has no space left."


async def test_without_its_database_the_service_is_not_ready_and_answers_503(client, home, tmp_path):
    from app.core.store.database import engine

    engine().dispose()
    engine.cache_clear()
    home(DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")
    ready = await client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    answer = await client.get("/v1/models")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]


async def test_numbers_count_requests_calls_and_jobs(client):
    add_model("v")
    await client.post("/v1/models/v/denoise", content=png())
    await client.post("/v1/trainings", json={"family": "vae", "dataset": "mnist5k"})
    await client.get("/v1/nothing/here")
    text = (await client.get("/metrics")).text
    for line in (
        'http_request_duration_seconds_count{method="POST",route="/v1/models/{m}/denoise",status="200"} 1.0',
        'http_request_duration_seconds_count{method="GET",route="none",status="404"} 1.0',
        'calls_total{code="ok",operation="denoise"} 1.0',
        'jobs{kind="training",status="queued"} 1.0',
        'workers{queue="infer"} 1.0',
    ):
        assert line in text, text


async def test_a_request_keeps_its_id_and_an_odd_one_is_replaced(client):
    for given, kept in (("abcd-1234", True), ("short", False), ("new\tline-here", False), ("x" * 65, False)):
        answer = await client.get("/v1/nothing", headers={"X-Request-ID": given})
        assert (answer.headers["x-request-id"] == given) is kept
        assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/v1/models", "/livez", "/docs", "/v1/nothing", "/docs/assets/page.css"])
async def test_every_answer_has_safe_headers(client, path):
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"


WRONG = [
    ("POST", "/v1/models", 405),
    ("PUT", "/v1/jobs", 405),
    ("GET", "/v2/models", 404),
    ("TRACE", "/v1/models", 405),
]


@pytest.mark.parametrize("method, path, status", WRONG)
async def test_wrong_addresses_and_methods_are_problems_too(client, method, path, status):
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert status != 405 or answer.headers["allow"] == "GET, HEAD"


async def test_all_methods_of_an_address_are_named(client):
    assert (await client.request("PATCH", "/v1/datasets/a")).headers["allow"] == "GET, HEAD, DELETE"
    assert (await client.put("/v1/trainings")).headers["allow"] == "POST"


async def test_a_crash_is_a_500_that_tells_nothing_but_its_id(client, lane):
    add_model("v")
    lane.error = RuntimeError("the secret is 42")
    answer = await client.post("/v1/models/v/denoise", content=png())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text and answer.json()["request_id"]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/datasets", "/v1/jobs", "/v1/families", "/livez", "/docs", "/v1/openapi.json"]
)
async def test_head_is_get_without_the_body(client, path):
    head, get = await client.head(path), await client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


async def test_the_catalog_is_served_with_schemas(client):
    families = (await client.get("/v1/families")).json()["data"]
    assert [item["name"] for item in families] == ["vae", "classifier", "pix2pix"]
    assert families[0]["config"]["properties"]["latent_dim"]["default"] == 32
    assert (await client.get("/v1/attacks/pgd")).json()["params"]["properties"]["steps"]["maximum"] == 1000
    missing = await client.get("/v1/families/vea")
    assert (missing.status_code, missing.json()["remedy"]) == (404, "Did you mean vae?")
    assert {item["name"] for item in (await client.get("/v1/operations")).json()["data"]} >= {"denoise", "attack"}


async def test_the_reference_page_needs_nobody_else(client):
    page = await client.get("/docs")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy
    assert "http" not in page.text.replace("<!doctype html>", "") and "<script>" not in page.text
    for asset in ("swagger/swagger-ui-bundle.js", "swagger/swagger-ui.css", "swagger/favicon-32x32.png", "docs.js"):
        assert asset in page.text
        assert (await client.get(f"/docs/assets/{asset}")).status_code == 200
    assert (await client.get("/docs/assets/../docs.py")).status_code == 404
    assert (await client.get("/", follow_redirects=True)).text == page.text


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_files_are_those_of_the_release(name):
    """swagger-ui-dist 5.35.0 from npm, with its licence beside it."""
    assert hashlib.sha256((STATIC / "swagger" / name).read_bytes()).hexdigest() == VENDORED[name]
    assert "Apache License" in (STATIC / "swagger" / "LICENSE").read_text()


async def test_every_kind_of_error_has_its_page(client):
    assert ADVICE.keys() == CODES.keys()
    for code in CODES:
        page = await client.get(f"/errors/{code}")
        assert page.status_code == 200 and code in page.text
    assert (await client.get("/errors/none")).status_code == 404
    assert (await client.get("/errors")).text.count("<li>") == len(CODES)


def test_the_description_is_whole(home):
    document = create_app().openapi()
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    for operation in operations:
        assert operation["summary"] and operation["tags"], operation["operationId"]
        assert {"401", "403", "422", "429", "500", "503"} <= operation["responses"].keys()
        for response in operation["responses"].values():
            assert response["description"]
    text = json.dumps(document)
    assert "#/$defs" not in text and "HTTPValidationError" not in text


def test_the_front_imports_no_torch():
    script = "import sys, app.main; print([name for name in ('torch', 'models', 'workers') if name in sys.modules])"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
