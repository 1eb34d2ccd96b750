"""GET samples: reproducible addresses, entity tags, answers without computing."""

import pytest

from tests.app.conftest import add_model

pytestmark = pytest.mark.anyio
HERE = "/v1/models/v/samples"


@pytest.fixture(autouse=True)
def model(app):
    return add_model("v")


async def test_the_same_request_is_answered_304_before_anything_is_computed(client, lane):
    first = await client.get(HERE, params={"n": 4, "seed": 7})
    assert first.status_code == 200 and len(lane.seen) == 1
    assert first.headers["etag"].startswith('"'), "strong"
    assert first.headers["x-seed"] == "7"
    for tags in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = await client.get(HERE, params={"n": 4, "seed": 7}, headers={"If-None-Match": tags})
        assert again.status_code == 304 and not again.content
        assert again.headers["etag"] == first.headers["etag"]
    assert len(lane.seen) == 1


@pytest.mark.parametrize("other", [{"n": 5}, {"seed": 8}, {"label": 1}, {"truncation": 0.5}])
async def test_whatever_changes_the_bytes_changes_the_tag(client, other):
    query = {"n": 4, "seed": 7}
    tags = [(await client.get(HERE, params=params)).headers["etag"] for params in (query, query | other)]
    assert tags[0] != tags[1]
    webp = await client.get(HERE, params=query, headers={"Accept": "image/webp"})
    assert webp.headers["etag"] not in tags


async def test_defaults_written_out_are_the_same_address(client):
    short, long = [(await client.get(HERE, params=p)).headers["etag"] for p in ({"seed": 7}, {"seed": 7, "n": 16})]
    assert short == long


async def test_a_new_version_under_the_name_changes_the_tag(client, app):
    before = (await client.get(HERE, params={"seed": 7})).headers["etag"]
    add_model("v", digest="e" * 64)
    app.state.resolver.forget()
    assert (await client.get(HERE, params={"seed": 7}, headers={"If-None-Match": before})).status_code == 200


async def test_a_version_is_immutable_and_a_name_is_not(client, model):
    assert (await client.get(HERE, params={"seed": 7})).headers["cache-control"] == "private, no-cache"
    pinned = await client.get(f"/v1/models/v@{model[:8]}/samples", params={"seed": 7})
    assert pinned.headers["cache-control"] == "private, max-age=31536000, immutable"


async def test_without_a_seed_one_is_picked_and_its_address_told(client, lane):
    first, second = [await client.get(HERE, params={"n": 2}) for _ in range(2)]
    assert first.headers["x-seed"] != second.headers["x-seed"]
    assert first.headers["cache-control"] == "no-store"
    again = await client.get(first.headers["content-location"])
    assert again.headers["etag"] == first.headers["etag"]
    assert "immutable" in again.headers["cache-control"]
    assert lane.seen[2].params == lane.seen[0].params


async def test_head_says_what_get_would_without_computing(client, lane):
    head = await client.head(HERE, params={"seed": 7})
    assert head.status_code == 200 and not head.content and not lane.seen
    get = await client.get(HERE, params={"seed": 7})
    for name in ("etag", "cache-control", "content-type", "x-seed", "vary"):
        assert head.headers[name] == get.headers[name]


async def test_json_has_every_image_and_its_latents(client):
    said = (await client.get(HERE, params={"n": 3, "seed": 7}, headers={"Accept": "application/json"})).json()
    assert len(said["images"]) == len(said["latents"]) == 3
    assert said["seed"] == 7
    one = (await client.get(HERE, params={"n": 1, "seed": 7}, headers={"Accept": "application/json"})).json()
    assert len(one["images"]) == 1


async def test_one_sample_is_a_picture_and_many_are_a_sheet(client, lane):
    await client.get(HERE, params={"n": 1})
    await client.get(HERE, params={"n": 2})
    assert [call.grid for call in lane.seen] == [False, True]


async def test_more_than_a_call_bears_is_refused_with_the_way_out(client, lane):
    answer = await client.get(HERE, params={"n": 257})
    assert answer.status_code == 422 and "respond-async" in answer.json()["remedy"]
    job = await client.get(HERE, params={"n": 257, "seed": 3}, headers={"Prefer": "respond-async"})
    assert job.status_code == 202 and job.headers["preference-applied"] == "respond-async"
    assert job.json()["request"]["params"]["n"] == 257
    assert not lane.seen
