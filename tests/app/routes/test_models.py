"""Models over HTTP: pages, cards, versions, weights, deletion."""

import pytest

from app.core.store import blobs
from tests.app.conftest import add_model

pytestmark = pytest.mark.anyio
OLD, NEW = "0" * 64, "1" * 64


@pytest.fixture
def two_versions(app):
    for digest in (OLD, NEW):
        add_model("v", digest=digest)
        blobs.put(f"models/{digest}/weights.safetensors", digest.encode())


async def test_a_model_has_its_card_its_versions_and_its_operations(client, two_versions):
    model = (await client.get("/v1/models/v")).json()
    assert (model["name"], model["ready"], model["digest"], model["family"]) == ("v", True, NEW, "vae")
    assert model["metrics"] == {"mse": 0.1} and model["card"]["digest"] == NEW
    assert [version["digest"] for version in model["versions"]] == [NEW, OLD]
    assert model["operations"]["denoise"] == "/v1/models/v/denoise"
    assert "classify" not in model["operations"]
    assert (await client.get("/v1/models/v@00000000")).json()["digest"] == OLD


async def test_pages_have_every_model_once_and_by_family(client):
    for index in range(5):
        add_model(f"v{index}")
    add_model("c", "classifier")
    found, query = [], {"limit": 2}
    while query.get("cursor", True):
        page = (await client.get("/v1/models", params=query)).json()
        found += [item["name"] for item in page["data"]]
        query["cursor"] = page["next_cursor"]
    assert found == ["c", "v0", "v1", "v2", "v3", "v4"]
    assert [item["name"] for item in (await client.get("/v1/models?family=classifier")).json()["data"]] == ["c"]
    assert (await client.get("/v1/models?cursor=a/b")).status_code == 422


async def test_weights_are_served_in_ranges_and_known_by_digest(client, two_versions):
    answer = await client.get("/v1/models/v@00000000/weights.safetensors")
    assert answer.content == OLD.encode() and "immutable" in answer.headers["cache-control"]
    assert "v-000000000000.safetensors" in answer.headers["content-disposition"]
    part = await client.get("/v1/models/v/weights.safetensors", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"1111")
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await client.get("/v1/models/v@00000000/weights.safetensors", headers=known)).status_code == 304
    assert (await client.get("/v1/models/v/weights.safetensors", headers=known)).status_code == 200
    head = await client.head("/v1/models/v/weights.safetensors")
    assert head.headers["content-length"] == "64" and not head.content


async def test_deleting_a_version_leaves_the_other_and_the_name_means_it(client, two_versions):
    assert (await client.delete("/v1/models/v@11111111")).status_code == 204
    assert (await client.get("/v1/models/v")).json()["digest"] == OLD
    assert not blobs.exists(f"models/{NEW}/weights.safetensors")
    assert blobs.exists(f"models/{OLD}/weights.safetensors")


async def test_deleting_a_name_deletes_all_its_versions(client, two_versions):
    await client.get("/v1/models/v/samples?n=1")
    assert (await client.delete("/v1/models/v")).status_code == 204
    for path in ("v", "v@00000000", "v/samples", "v/weights.safetensors"):
        assert (await client.get(f"/v1/models/{path}")).status_code == 404, path
    assert (await client.delete("/v1/models/v")).status_code == 404
    assert blobs.list("models") == []


async def test_blobs_that_another_tenant_needs_stay(client, two_versions):
    add_model("theirs", tenant="other", digest=NEW)
    await client.delete("/v1/models/v")
    assert [key for key, _ in blobs.list("models")] == [f"models/{NEW}/weights.safetensors"]


async def test_a_prefix_that_two_versions_share_names_neither(client):
    add_model("v", digest="a" * 63 + "0")
    add_model("v", digest="a" * 63 + "1")
    assert (await client.get("/v1/models/v@aaaaaaaa")).status_code == 404
    assert (await client.get(f"/v1/models/v@{'a' * 63}1")).status_code == 200


@pytest.mark.parametrize("name", ["%00", "a%2Fb", "..", "a@b", "a@abc", "é", "%ED%A0%80", "x" * 300])
async def test_what_no_model_can_be_called_is_404(client, name):
    for path in (f"/v1/models/{name}", f"/v1/models/{name}/samples"):
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
