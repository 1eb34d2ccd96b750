"""/v1/defences: stages are completed, models become exact versions, what cannot be is named before there is a job."""

import pytest

from tests.app.conftest import add_dataset, add_model

pytestmark = pytest.mark.anyio
BODY = {"model": "judge", "name": "guarded", "stages": [{"kind": "jpeg"}, {"kind": "purify", "model": "coder"}]}


@pytest.fixture(autouse=True)
def there(app):
    add_dataset("squares")
    add_model("judge", family="classifier")
    add_model("coder", family="vae")


async def test_a_defence_job_has_exact_versions_and_all_settings(client):
    answer = await client.post("/v1/defences", json=BODY)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    asked = job["request"]
    assert job["kind"] == "defence" and asked["model"].startswith("judge@") and asked["draws"] == 16
    assert asked["stages"][0] == {"kind": "jpeg", "quality": 75}
    assert asked["stages"][1]["model"].startswith("coder@")
    assert asked["detector"] == {"kind": "squeezing", "quantile": 0.95}


REFUSED = [
    ({"stages": [{"kind": "jpge"}]}, 422, "/stages/0/kind"),
    ({"stages": [{"kind": "jpeg", "quality": 101}]}, 422, "/stages/0/quality"),
    ({"stages": [{"kind": "jpeg"}, {"kind": "purify"}]}, 422, "/stages/1/model"),
    ({"stages": [{"kind": "purify", "model": "nobody"}]}, 404, "/stages/0/model"),
    ({"stages": [{"kind": "jpeg", "size": 3}]}, 422, "/stages/0/size"),
    ({"stages": [{}]}, 422, "/stages/0/kind"),
    ({"stages": [{"kind": "jpeg"}] * 9}, 422, "/stages"),
    ({"detector": {"kind": "squeezing", "quantile": 2}}, 422, "/detector/quantile"),
    ({"model": "coder"}, 409, "/model"),
    ({"model": "nobody"}, 404, None),
    ({"dataset": "circles"}, 404, None),
    ({"draws": 0}, 422, "/draws"),
    ({"name": "../x"}, 422, "/name"),
]


@pytest.mark.parametrize(("change", "status", "pointer"), REFUSED)
async def test_what_is_refused_names_the_field(client, change, status, pointer):
    answer = await client.post("/v1/defences", json=BODY | change)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert pointer is None or problem["errors"][0]["pointer"] == pointer, problem


async def test_the_kinds_are_listed_with_their_settings(client):
    listed = (await client.get("/v1/defences")).json()
    assert {entry["name"] for entry in listed["data"]} == {"jpeg", "purify"}
    assert listed["data"][0]["params"]["properties"]["quality"]["default"] == 75
    assert listed["detectors"][0]["name"] == "squeezing"
