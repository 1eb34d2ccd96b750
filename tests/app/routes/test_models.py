"""Models over HTTP: pages, cards, versions, weights, deletion."""

import pytest

from app.core.store import blobs
from tests.app.conftest import add_model

pytestmark = pytest.mark.anyio


@pytest.fixture
def two_versions(app) -> tuple[str, str]:
    """The digests of the older and the newer version."""
    return add_model("v"), add_model("v", version=1)


async def test_a_model_has_its_card_its_versions_and_its_operations(client, two_versions):
    old, new = two_versions
    model = (await client.get("/v1/models/v")).json()
    assert (model["name"], model["ready"], model["digest"], model["family"]) == ("v", True, new, "vae")
    assert model["metrics"] == {"mse": 0.1} and model["card"]["digest"] == new
    assert [version["digest"] for version in model["versions"]] == [new, old]
    assert model["operations"]["denoise"] == "/v1/models/v/denoise"
    assert "classify" not in model["operations"]
    assert (await client.get(f"/v1/models/v@{old[:8]}")).json()["digest"] == old


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
    old, new = two_versions
    answer = await client.get(f"/v1/models/v@{old[:8]}/weights.safetensors")
    assert answer.content == blobs.get(f"models/{old}/weights.safetensors")
    assert "immutable" in answer.headers["cache-control"]
    assert f"v-{old[:12]}.safetensors" in answer.headers["content-disposition"]
    part = await client.get("/v1/models/v/weights.safetensors", headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"loca")
    known = {"If-None-Match": answer.headers["etag"]}
    assert (await client.get(f"/v1/models/v@{old[:8]}/weights.safetensors", headers=known)).status_code == 304
    assert (await client.get("/v1/models/v/weights.safetensors", headers=known)).status_code == 200
    head = await client.head("/v1/models/v/weights.safetensors")
    assert head.headers["content-length"] == str(blobs.size(f"models/{new}/weights.safetensors")) and not head.content


async def test_a_model_whose_weights_are_lost_or_damaged_is_not_ready_and_not_sent(client, two_versions):
    _, new = two_versions
    key = f"models/{new}/weights.safetensors"
    good = blobs.get(key)
    assert (await client.get("/v1/models/v/weights.safetensors")).status_code == 200
    for what, data in (("damaged", good[:-1] + b"?"), ("damaged", good[:-1]), ("missing", None)):
        blobs.delete_prefix(key) if data is None else blobs.put(key, data, create_only=False)
        model = (await client.get("/v1/models/v")).json()
        assert model["ready"] is False and what in model["reason"] and "doctor --blobs" in model["reason"]
        answer = await client.get("/v1/models/v/weights.safetensors")
        assert (answer.status_code, answer.json()["code"]) == (503, "storage-damaged"), answer.text
        assert what in answer.json()["detail"] and "doctor --blobs" in answer.json()["remedy"]
        listed = (await client.get("/v1/models")).json()["data"][0]
        assert listed["ready"] is (data == good[:-1] + b"?"), "a list compares sizes"
    blobs.put(key, good)
    assert (await client.get("/v1/models/v")).json()["ready"] is True
    assert (await client.get("/v1/models/v/weights.safetensors")).content == good


async def test_deleting_a_version_leaves_the_other_and_the_name_means_it(client, two_versions):
    old, new = two_versions
    assert (await client.delete(f"/v1/models/v@{new[:8]}")).status_code == 204
    assert (await client.get("/v1/models/v")).json()["digest"] == old
    assert not blobs.exists(f"models/{new}/weights.safetensors")
    assert blobs.exists(f"models/{old}/weights.safetensors")


async def test_deleting_a_name_deletes_all_its_versions(client, two_versions):
    await client.get("/v1/models/v/samples?n=1")
    assert (await client.delete("/v1/models/v")).status_code == 204
    for path in ("v", f"v@{two_versions[0][:8]}", "v/samples", "v/weights.safetensors"):
        assert (await client.get(f"/v1/models/{path}")).status_code == 404, path
    assert (await client.delete("/v1/models/v")).status_code == 404
    assert blobs.list("models") == []


async def test_blobs_that_another_tenant_needs_stay(client, two_versions):
    _, new = two_versions
    add_model("theirs", tenant="other", digest=new)
    await client.delete("/v1/models/v")
    assert {key.split("/")[1] for key, _ in blobs.list("models")} == {new}


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
