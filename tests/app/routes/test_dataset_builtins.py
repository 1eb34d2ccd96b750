"""Built-in sets over HTTP: drawn at a size that is asked for; what stays when one is deleted."""

import pytest

from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading
from tests.app.conftest import DIGEST, add_dataset

pytestmark = pytest.mark.anyio

DRAWN = [
    ("image_size=64", {"name": "openmoji", "builtin": "openmoji", "image_size": "64"}),
    ("image_size=48x48&name=larger", {"name": "larger", "builtin": "openmoji", "image_size": "48x48"}),
]
REFUSED = [
    ("builtin=mnist5k&image_size=64", 422, "invalid-request"),
    ("builtin=openmoji&image_size=32x64", 422, "invalid-request"),
    ("builtin=openmoji&image_size=15", 422, "invalid-request"),
    ("builtin=openmoji&image_size=257", 422, "invalid-request"),
    ("builtin=openmoji&image_size=64&channels=1", 422, "invalid-request"),
    ("builtin=openmoji&name=emoji", 422, "invalid-request"),
    ("builtin=openmoji&image_size=64&name=mnist5k", 409, "conflict"),
]


@pytest.mark.parametrize("query, spec", DRAWN)
async def test_a_built_in_dataset_has_the_requested_size(client, query, spec):
    answer = await client.post(f"/v1/datasets?builtin=openmoji&{query}")
    assert answer.status_code == 202, answer.text
    with reading() as conn:
        assert jobs.get(conn, "local", answer.json()["id"])["spec"] == spec


@pytest.mark.parametrize("query, status, code", REFUSED)
async def test_impossible_sizes_of_built_in_datasets_are_refused(client, query, status, code):
    answer = await client.post(f"/v1/datasets?{query}")
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_a_built_in_dataset_has_its_sizes_and_twins(client):
    emoji, digits = [(await client.get(f"/v1/datasets/{name}")).json() for name in ("openmoji-tone", "mnist5k")]
    assert (emoji["sizes"], emoji["twins"]) == ([16, 256], True)
    assert (digits["sizes"], digits["twins"]) == (None, False)


async def test_the_arrays_of_a_deleted_dataset_stay_for_the_cleanup(client):
    """A training may be taken up again; another tenant may have the same images."""
    add_dataset("squares")
    blobs.put(f"datasets/{DIGEST}/facts.json", b"{}")
    await client.delete("/v1/datasets/squares")
    assert blobs.list("datasets")
