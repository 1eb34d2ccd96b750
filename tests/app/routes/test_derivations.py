"""POST /v1/derivations: what is refused before a job is made."""

import pytest

from tests.app.conftest import add_dataset, add_model

pytestmark = pytest.mark.anyio
BODY = {"name": "clean", "dataset": "squares", "model": "net", "operation": "denoise"}


@pytest.fixture(autouse=True)
def there(app):
    add_dataset("squares")
    add_model("net", family="vae")
    add_model("judge", family="classifier")
    add_dataset("colours", channels=3)
    add_dataset("large", height=16)


async def test_a_derived_dataset_is_a_job_that_names_the_version(client):
    answer = await client.post("/v1/derivations", json=BODY)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["kind"] == "dataset" and job["request"]["model"].startswith("net@")
    assert job["request"]["params"] == {} and "upload" not in job["request"]


REFUSED = [
    ({"name": "squares"}, 409, "name"),
    ({"name": "mnist5k"}, 409, "name"),
    ({"dataset": "circles"}, 404, "/dataset"),
    ({"model": "nets"}, 404, "/model"),
    ({"operation": "encode"}, 422, "/operation"),
    ({"model": "judge"}, 409, None),
    ({"params": {"siz": 3}}, 422, "/params/siz"),
    ({"column": "c"}, 422, "/column"),
    ({"column": "a"}, 422, "/column"),
    ({"dataset": "colours"}, 422, "/dataset"),
    ({"dataset": "large"}, 422, "/dataset"),
    ({"dataset": "mnist5k"}, 422, "/dataset"),
]


@pytest.mark.parametrize(("change", "status", "pointer"), REFUSED)
async def test_what_is_refused_names_the_field(client, change, status, pointer):
    answer = await client.post("/v1/derivations", json=BODY | change)
    assert answer.status_code == status, answer.text
    if pointer:
        assert answer.json()["errors"][0]["pointer"] == pointer


async def test_an_operation_of_any_size_takes_other_sizes_but_no_other_channels(client):
    add_model("better", family="refiner")
    body = BODY | {"model": "better", "operation": "refine"}
    assert (await client.post("/v1/derivations", json=body | {"dataset": "large"})).status_code == 202
    refused = await client.post("/v1/derivations", json=body | {"dataset": "colours", "name": "other"})
    assert refused.status_code == 422 and "channels=1" in refused.json()["remedy"]
