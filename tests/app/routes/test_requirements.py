"""A model or a dataset that does not suit a job is refused at the door, by the field that named it."""

import pytest

from app.core import catalog as catalogs
from tests.app.conftest import add_dataset, add_model

pytestmark = pytest.mark.anyio
SIZED = [
    ("/v1/reports", {"report": "robustness", "model": "c", "attacks": ["fgsm"], "eps": [0.1]}),
    ("/v1/perturbations", {"model": "c"}),
]


@pytest.fixture
def things(app):
    app.state.catalog = catalogs.load()
    add_model("c", "classifier")
    add_model("v")
    add_dataset("squares")
    add_dataset("unnamed", "plain")


@pytest.mark.parametrize(("path", "body"), SIZED)
async def test_images_of_another_size_are_refused_with_the_way_to_import_them(client, things, path, body):
    answer = await client.post(path, json=body | {"dataset": "mnist5k"})
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "invalid-dataset" and problem["errors"][0]["pointer"] == "/dataset"
    assert "28x28" in problem["detail"] and "image_size=8x8&channels=1" in problem["remedy"]
    assert (await client.post(path, json=body | {"dataset": "squares"})).status_code == 202


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/trainings", {"family": "classifier", "dataset": "unnamed"}, 422, "/dataset"),
        ("/v1/trainings", {"family": "regressor", "dataset": "squares"}, 422, "/dataset"),
        ("/v1/trainings", {"family": "vae", "dataset": "gone"}, 404, "/dataset"),
        ("/v1/trainings", {"family": "vae", "dataset": "squares", "init_from": "x"}, 404, "/init_from"),
        ("/v1/perturbations", {"model": "v", "dataset": "squares"}, 409, "/model"),
        ("/v1/defences", {"model": "v", "name": "safe"}, 409, "/model"),
        ("/v1/defences", {"model": "c", "name": "safe", "dataset": "gone"}, 404, "/dataset"),
        ("/v1/reports", {"model": "v", "dataset": "squares"}, 409, "/model"),
        ("/v1/reports", {"model": "c", "dataset": "unnamed"}, 422, "/dataset"),
    ],
)
async def test_what_does_not_suit_is_named(client, things, path, body, status, field):
    answer = await client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["errors"][0]["pointer"] == field


async def test_a_missing_column_comes_with_the_way_to_upload_it(client, things):
    answer = await client.post("/v1/trainings", json={"family": "regressor", "dataset": "squares"})
    assert "labels.csv with a column target" in answer.json()["remedy"]
