"""Datasets over HTTP."""

import base64
import hashlib
import io
import zipfile
from functools import cache

import numpy as np
import pytest

from app.core.catalog.builtins import BUILTINS
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading
from tests.app.conftest import DIGEST, add_dataset, png

pytestmark = pytest.mark.anyio


@cache
def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for index in range(4):
            file.writestr(f"class{index % 2}/{index}.png", png(index))
    return out.getvalue()


@cache
def arrays() -> bytes:
    out = io.BytesIO()
    np.savez(out, images=np.zeros((4, 8, 8), np.uint8))
    return out.getvalue()


def spec_of(job: dict) -> dict:
    with reading() as conn:
        return jobs.get(conn, "local", job["id"])["spec"]


async def pieces(data: bytes):
    for start in range(0, len(data), 100):
        yield data[start : start + 100]


async def test_an_upload_is_stored_as_it_streams_in_and_becomes_a_job(client):
    query = {"name": "squares", "layout": "labelled", "image_size": "16", "channels": "1"}
    headers = {"Content-Type": "application/zip"}
    answer = await client.post("/v1/datasets", params=query, content=pieces(archive()), headers=headers)
    assert answer.status_code == 202, answer.text
    spec = spec_of(answer.json())
    assert spec == {
        "name": "squares",
        "format": "zip",
        "upload": spec["upload"],
        "bytes": len(archive()),
        "layout": "labelled",
        "image_size": "16",
        "channels": 1,
    }
    assert blobs.get(spec["upload"]) == archive()


@pytest.mark.parametrize("media", ["application/x-npz", "application/zip", "application/octet-stream", ""])
async def test_an_npz_is_recognised_by_its_first_member(client, media):
    headers = {"Content-Type": media} if media else {}
    answer = await client.post("/v1/datasets?name=arrays", content=arrays(), headers=headers)
    assert spec_of(answer.json())["format"] == "npz"


BAD = [
    ("name=a", {"content": b""}, 422, "invalid-dataset"),
    ("name=a", {"content": b"no zip at all"}, 422, "invalid-dataset"),
    ("", {"content": b"PK"}, 422, "invalid-request"),
    ("name=../a", {"content": b"PK"}, 422, "invalid-request"),
    ("name=a%00", {"content": b"PK"}, 422, "invalid-request"),
    ("name=a&layout=odd", {"content": b"PK"}, 422, "invalid-request"),
    ("name=a&channels=2", {"content": b"PK"}, 422, "invalid-request"),
    ("name=a&image_size=big", {"content": b"PK"}, 422, "invalid-request"),
    ("name=mnist5k", {"content": b"PK"}, 409, "conflict"),
    ("name=taken", {"content": b"PK"}, 409, "conflict"),
    ("name=a", {"files": {"file": b"PK"}}, 415, "unsupported-media"),
    ("builtin=mnist6k", {}, 422, "invalid-request"),
    ("builtin=mnist5k&name=other", {}, 422, "invalid-request"),
    ("builtin=mnist5k&layout=plain", {}, 422, "invalid-request"),
]


@pytest.mark.parametrize("query, request_, status, code", BAD)
async def test_a_bad_upload_is_refused_and_leaves_nothing(client, query, request_, status, code):
    add_dataset("taken")
    answer = await client.post(f"/v1/datasets?{query}", **request_)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert blobs.list("uploads") == []


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_larger_than_allowed_ends_early(home, client, declared):
    home(max_body_bytes=1000)
    body = b"PK" + bytes(5000)
    answer = await client.post("/v1/datasets?name=a", content=body if declared else pieces(body))
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    assert blobs.list("uploads") == []


async def test_a_repeated_upload_is_one_job_even_after_its_name_was_taken(client):
    request = {"params": {"name": "squares"}, "content": archive(), "headers": {"Idempotency-Key": "k"}}
    first = await client.post("/v1/datasets", **request)
    add_dataset("squares")
    again = await client.post("/v1/datasets", **request)
    assert again.json()["id"] == first.json()["id"] and again.headers["idempotency-replayed"] == "true"
    assert len(blobs.list("uploads")) == 1


async def test_built_in_datasets_are_listed_with_licence_and_attribution(client):
    listed = {item["name"]: item for item in (await client.get("/v1/datasets?limit=100")).json()["data"]}
    for name, built in BUILTINS.items():
        item = listed[name]
        assert item["builtin"] and not item["imported"] and isinstance(item["installed"], bool)
        assert item["licence"] == built.licence and item["attribution"] == built.attribution
    answer = await client.post("/v1/datasets?builtin=mnist5k")
    assert answer.status_code == 202
    assert spec_of(answer.json()) == {"name": "mnist5k", "builtin": "mnist5k"}


async def test_pages_have_every_dataset_once(client):
    wanted = sorted([f"Set{index:02}" for index in range(7)] + [f"set{index:02}" for index in range(7)])
    for name in wanted:
        add_dataset(name)
    found, cursor = [], None
    while True:
        page = (await client.get("/v1/datasets", params={"limit": 4} | ({"cursor": cursor} if cursor else {}))).json()
        assert len(page["data"]) <= 4
        found += [item["name"] for item in page["data"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    assert sorted(found) == sorted([*wanted, *BUILTINS])


async def test_a_deleted_dataset_frees_its_name(client):
    add_dataset("squares")
    item = (await client.get("/v1/datasets/squares")).json()
    assert (item["count"], item["classes"], item["digest"]) == (100, ["even", "odd"], DIGEST)
    assert (await client.delete("/v1/datasets/squares")).status_code == 204
    assert (await client.get("/v1/datasets/squares")).status_code == 404
    assert (await client.delete("/v1/datasets/squares")).status_code == 404
    add_dataset("squares")
    assert (await client.get("/v1/datasets/squares")).status_code == 200


async def test_images_come_with_their_labels(client, lane):
    add_dataset("squares")
    page = (await client.get("/v1/datasets/squares/images?split=validation&start=2&count=3")).json()
    assert [item["label"] for item in page["data"]] == ["even", "odd", "even"]
    assert base64.b64decode(page["data"][0]["image"]) == png(0)
    assert (page["split"], page["start"], page["total"]) == ("validation", 2, 20)
    assert lane.seen[0].params == {
        "dataset": DIGEST,
        "split": "validation",
        "column": None,
        "start": 2,
        "count": 3,
    }


async def test_images_are_one_sheet_for_accept_png(client, lane):
    add_dataset("squares")
    sheet = await client.get("/v1/datasets/squares/images?count=9", headers={"Accept": "image/png"})
    assert (sheet.headers["content-type"], sheet.content) == ("image/png", png(0))
    assert lane.seen[0].grid
    assert (await client.get("/v1/datasets/squares/images", headers={"Accept": "text/html"})).status_code == 406


async def test_thumbnails_are_those_of_the_import(client):
    add_dataset("squares")
    here = (await client.get("/v1/datasets/squares")).json()["links"]["thumbnails"]
    assert (await client.get(here)).status_code == 404
    blobs.put(f"datasets/{DIGEST}/thumbnails.png", png(3))
    assert (await client.get(here)).content == png(3)


async def test_images_of_missing_datasets_are_refused(client, lane):
    assert (await client.get("/v1/datasets/nothing/images")).status_code == 404
    problem = (await client.get("/v1/datasets/mnist5k/images")).json()
    assert problem["code"] == "conflict" and "builtin=mnist5k" in problem["remedy"]
    assert (await client.get("/v1/datasets/mnist5k/images?count=257")).status_code == 422
    assert not lane.seen


async def test_a_dataset_that_is_being_imported_is_a_conflict(client):
    job = (await client.post("/v1/datasets?name=squares", content=archive())).json()
    problem = (await client.get("/v1/datasets/squares")).json()
    assert problem["code"] == "conflict" and problem["job"] == f"/v1/jobs/{job['id']}"


async def test_a_tenant_that_stores_as_much_as_it_may_uploads_no_more(home, client):
    home(max_bytes_per_tenant=6400)
    add_dataset("squares")
    answer = await client.post("/v1/datasets?name=more", content=archive())
    assert (answer.status_code, answer.json()["code"]) == (429, "quota-exceeded")


async def test_the_blob_has_the_hash_that_the_key_was_promised_for(client):
    """Two uploads under one key with other bytes are two requests."""
    request = {"params": {"name": "squares"}, "headers": {"Idempotency-Key": "k"}}
    await client.post("/v1/datasets", content=archive(), **request)
    answer = await client.post("/v1/datasets", content=arrays(), **request)
    assert answer.json()["code"] == "idempotency-mismatch"
    assert [hashlib.sha256(blobs.get(key)).digest() for key, _ in blobs.list("uploads")] == [
        hashlib.sha256(archive()).digest()
    ]
