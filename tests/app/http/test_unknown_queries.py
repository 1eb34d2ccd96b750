"""A query parameter that nobody knows is refused by name, wherever the description says what there is."""

import pytest

from tests.app.conftest import add_dataset

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "field", "says"),
    [
        ("/v1/datasets/squares/images?cuont=2", "cuont", "count"),
        ("/v1/models?limt=2", "limt", "limit"),
        ("/v1/families/vae?verbose=1", "verbose", "takes no query"),
    ],
)
async def test_a_misspelt_parameter_is_named_with_the_nearest_one(client, path, field, says):
    add_dataset("squares")
    answer = await client.get(path)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == field
    assert says in answer.json()["remedy"]


async def test_routes_without_description_accept_any_parameter(client):
    assert (await client.get("/docs?theme=dark")).status_code == 200
