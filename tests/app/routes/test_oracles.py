"""/v1/oracles: only what the administrator named, only attacks that it can be asked for, never an address."""

import base64
import json

import pytest
from pydantic import ValidationError

from app.core.settings import Settings, settings
from tests.app import small_catalog as catalog
from tests.app.conftest import add_dataset, png

pytestmark = pytest.mark.anyio
IMAGE = base64.b64encode(png()).decode()
LABELS = {"url": "http://host", "answers": "labels"}
BODY = {"method": "square", "images": [IMAGE], "params": {"eps": 0.1}}


@pytest.fixture(autouse=True)
def named(app, monkeypatch):
    oracles = {
        "clinic": "http://10.0.0.1/classify",
        "quiet": {"url": "https://q.test/", "answers": "labels", "classes": ["a", "b"]},
    }
    monkeypatch.setenv("ANAMORPH_ORACLES", json.dumps(oracles))
    settings.cache_clear()
    square = catalog.attack("square", control={"type": "boolean", "default": False})
    square |= {"access": "scores", "settings": ["eps"], "victims": ["Classifies"]}
    monkeypatch.setitem(app.state.catalog["attacks"], "square", square)
    add_dataset("squares")
    yield
    monkeypatch.delenv("ANAMORPH_ORACLES")
    settings.cache_clear()


async def test_oracles_are_listed_without_their_addresses(client):
    answer = await client.get("/v1/oracles")
    listed = {entry["name"]: entry for entry in answer.json()["data"]}
    assert "10.0.0.1" not in answer.text and "url" not in listed["clinic"]
    assert listed["clinic"]["methods"] == ["square"] and listed["quiet"]["methods"] == []


async def test_an_attack_is_a_job_and_says_nothing_of_the_address(client):
    answer = await client.post("/v1/oracles/clinic/attack", json=BODY)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["kind"] == "oracle" and job["request"]["oracle"] == "clinic" and "10.0.0.1" not in answer.text
    assert job["request"]["params"]["eps"] == 0.1 and "control" not in job["request"]["params"]
    assert "upload" not in job["request"]


REFUSED = [
    ("nobody", {}, 404, None),
    ("http%3A%2F%2Fevil.test", {}, 404, None),
    ("clinic", {"method": "fgsm"}, 422, "/method"),
    ("quiet", {"method": "square"}, 422, "/method"),
    ("clinic", {"params": {"epsilon": 1}}, 422, "/params/epsilon"),
    ("clinic", {"params": {"control": True}}, 422, "/params/control"),
    ("clinic", {"images": ["no base64!"]}, 422, "/images/0"),
    ("clinic", {"images": [base64.b64encode(b"text").decode()]}, 422, "/images/0"),
    ("clinic", {"images": []}, 422, "/images"),
    ("clinic", {"dataset": "squares"}, 422, "/images"),
    ("clinic", {"images": None}, 422, "/images"),
    ("clinic", {"images": None, "dataset": "circles"}, 404, None),
    ("clinic", {"total_budget": 0}, 422, "/total_budget"),
    ("clinic", {"url": "http://evil.test"}, 422, "/url"),
]


@pytest.mark.parametrize(("name", "change", "status", "pointer"), REFUSED)
async def test_what_is_refused_names_the_field(client, name, change, status, pointer):
    answer = await client.post(f"/v1/oracles/{name}/attack", json=BODY | change)
    assert answer.status_code == status, answer.text
    assert pointer is None or answer.json()["errors"][0]["pointer"] == pointer, answer.text


@pytest.mark.parametrize(
    "oracle",
    ["ftp://h/", "file:///etc/passwd", "http:///path", "http://me:pass@h/", "no address", LABELS],
)
def test_an_oracle_that_cannot_be_is_refused_when_the_service_starts(monkeypatch, oracle):
    monkeypatch.setenv("ANAMORPH_ORACLES", json.dumps({"clinic": oracle}))
    with pytest.raises(ValidationError):
        Settings()
