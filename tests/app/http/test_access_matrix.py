"""Every operation of the API for every kind of caller: the right status, and nothing of another tenant."""

import base64
import json
import re
from types import SimpleNamespace

import pytest

from app.core.errors import CODES
from app.core.store import keys
from app.core.store.database import transaction
from tests.app.conftest import add_dataset, add_model, png
from tests.app.http.test_auth import key
from tests.app.small_catalog import CATALOG

pytestmark = pytest.mark.anyio
SECRETS = ("secretmodel", "secretdata", "secretjob", "secretkey", "secretnoise")
"""Names of the owner's things: an answer to another tenant has none of them, unless the request had it."""
CALLERS = {
    "owner": ("owner", "read", "write"),
    "read": ("owner", "read"),
    "write": ("owner", "write"),
    "owner's tenant-admin": ("owner", "read", "write", "tenant-admin"),
    "other": ("other", "read", "write"),
    "other's tenant-admin": ("other", "read", "write", "tenant-admin"),
    "admin of another tenant": ("other", "read", "write", "admin"),
}
NOBODY = ("revoked", "expired", "none", "garbage", "basic")


def operations() -> list[tuple[str, str, dict]]:
    """(method, path, description) of all operations, from the description of the API."""
    from app.main import create_app

    paths = create_app(CATALOG).openapi()["paths"]
    return [(method.upper(), path, about) for path, methods in paths.items() for method, about in methods.items()]


OPERATIONS = operations()
OPEN = {"/livez", "/readyz"}
SHARED = {"m": "secretmodel", "d": "secretdata", "o": "none", "name": "vae", "images": "1"}


def needed(method: str, path: str) -> tuple[str, ...]:
    """The scopes of which a caller needs one."""
    if path == "/v1/me":
        return keys.SCOPES
    if path == "/metrics":
        return ("admin",)
    if path.startswith("/v1/keys"):
        return ("tenant-admin", "admin")
    if method == "GET" and re.fullmatch(r"/v1/jobs/\{id\}(/events)?", path):
        return ("read", "write")
    computes = (path.startswith("/v1/models/{m}/") and not path.endswith("/quiz")) or path.endswith(
        ("/apply", "/validate")
    )
    return ("read",) if method in ("GET", "HEAD") or computes else ("write",)


@pytest.fixture
async def house(keyed, app, client):
    """The owner's model, dataset, job, perturbation and key, and a header for each kind of caller."""
    headers = {name: key(*about) for name, about in CALLERS.items()}
    with transaction() as conn:
        token, row = keys.mint(conn, "owner", "revoked", ("read", "write"))
        keys.revoke(conn, row["id"])
        _, mine = keys.mint(conn, "owner", "secretkey", ("read",))
    headers |= {
        "revoked": {"Authorization": f"Bearer {token}"},
        "expired": key("owner", "read", "write", "admin", days=-1),
        "none": {},
        "garbage": {"Authorization": "Bearer an_00000000_" + "x" * 43},
        "basic": {"Authorization": "Basic " + base64.b64encode(b"owner:x").decode()},
    }
    digest = add_model("secretmodel", tenant="owner")
    add_dataset("secretdata", tenant="owner")
    body = {"family": "vae", "dataset": "secretdata", "name": "secretjob"}
    job = (await client.post("/v1/trainings", json=body, headers=headers["owner"])).json()["id"]
    await client.post(f"/v1/jobs/{job}/cancel", headers=headers["owner"])  # else watching it would not end
    return SimpleNamespace(client=client, headers=headers, job=job, key=mine["id"], digest=digest)


async def ask(house, caller: str, method: str, path: str, about: dict):
    names = SHARED | {"p": "secretnoise", "id": house.key if path.startswith("/v1/keys") else house.job}
    query, body = {}, {}
    for parameter in about.get("parameters", ()):
        if parameter["in"] == "query" and parameter.get("required"):
            query[parameter["name"]] = "1"
        if parameter["in"] == "path":
            names.setdefault(parameter["name"], "1")
    content = about.get("requestBody", {}).get("content", {})
    if "image/png" in content:
        body = {"content": png(), "headers": {"Content-Type": "image/png"}}
    elif "application/json" in content:
        body = {"json": {}}
    if path == "/v1/datasets" and method == "POST":
        query, body = {"builtin": "mnist5k"}, {}
    return await house.client.request(
        method,
        path.format(**names),
        params=query,
        **body | {"headers": body.get("headers", {}) | house.headers[caller] | {"Prefer": "wait=0"}},
    )


async def faults(house, caller: str) -> list[tuple]:
    """The operations that answer a caller wrongly."""
    tenant, scopes = CALLERS.get(caller, ("", ()))[0], set(CALLERS.get(caller, ("",))[1:])
    wrong, good = [], 0
    # deletions come last, so that there is something to find before
    for method, path, about in sorted(OPERATIONS, key=lambda each: (each[0] == "DELETE", each[0] == "PUT")):
        answer = await ask(house, caller, method, path, about)
        status, sent = answer.status_code, f"{answer.request.url} {answer.request.content!r}"
        good += status < 300
        private = "{" in path and not re.search(r"/(families|attacks|oracles|operations)/", path)
        if path in OPEN:
            right = status == 200
        elif caller in NOBODY:
            right = status == 401 and answer.json()["code"] == "unauthorized"
            right = right and answer.headers["www-authenticate"].startswith("Bearer")
        elif not scopes & set(needed(method, path)):
            right = status == 403 and answer.json()["code"] == "forbidden"
        elif tenant == "other" and path.startswith("/v1/keys"):
            right = "admin" in scopes or status == (404 if "{" in path else 200 if method == "GET" else 422)
        elif tenant == "other" and private:
            # an import under the same name is a model of the caller's own
            right = status in (404, 422) or (method == "PUT" and status < 500)
        else:
            right = status not in (401, 403) and status < 500
        if tenant != "owner" and "admin" not in scopes:
            # a name that the request has may be repeated in its answer
            names = (*SECRETS, house.job, house.key, house.digest)
            right = right and not any(name in answer.text and name not in sent for name in names)
        if answer.headers.get("content-type") == "application/problem+json":
            right = right and answer.json()["code"] in CODES
        if not right:
            wrong.append((caller, method, path, status, answer.text[:200]))
    assert caller != "owner" or good > len(OPERATIONS) / 4, "the owner finds what is there"
    return wrong


@pytest.mark.parametrize(
    "callers", [(*NOBODY, "read", "owner"), ("write",), ("owner's tenant-admin",), list(CALLERS)[4:]], ids=str
)
async def test_access(house, callers):
    """401 without a valid key, 403 without the scope, 404 for what belongs to another, never anything of another."""
    wrong = [fault for caller in callers for fault in await faults(house, caller)]
    assert not wrong, json.dumps(wrong, indent=1)
    assert len(OPERATIONS) > 60


async def test_answers_for_another_tenant_are_those_for_what_does_not_exist(house):
    """Under a wrong key and for a wrong name the same words: names cannot be guessed."""
    for path in ("/v1/models/{}", "/v1/datasets/{}", "/v1/models/{}/versions"):
        name = "secretdata" if "datasets" in path else "secretmodel"
        theirs = await house.client.get(path.format(name), headers=house.headers["other"])
        absent = await house.client.get(path.format("x" * len(name)), headers=house.headers["other"])
        assert theirs.status_code == absent.status_code == 404
        assert theirs.json()["detail"].replace(name, "x" * len(name)) == absent.json()["detail"]
