"""Zips of images: frames of a video go in and come out in order, under their names."""

import io
import zipfile

import pytest

from app.api.calls.frames import read_frames
from app.core.calls.messages import unpack_inputs
from app.core.errors import AnamorphError
from app.core.jobs import state as jobs
from app.core.store import blobs
from app.core.store.database import reading
from tests.app.conftest import add_model, png

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def model(app):
    return add_model("v")


def packed(names: list[str], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for index, name in enumerate(names):
            archive.writestr(name, png(index))
    return out.getvalue()


@pytest.mark.parametrize("media", ["application/zip", "application/x-www-form-urlencoded"])
async def test_frames_come_back_in_natural_order_under_their_names(client, lane, media):
    names = ["clip/frame10.png", "clip/frame2.png", "clip/frame1.png", "__MACOSX/clip/._frame1.png", "notes.txt"]
    answer = await client.post("/v1/models/v/denoise", content=packed(names), headers={"Content-Type": media})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    assert lane.seen[0].images == [png(2), png(1), png(0)]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == ["frame1.png", "frame2.png", "frame10.png", "facts.json"]


async def test_a_zip_of_one_is_answered_with_a_zip(client):
    answer = await client.post("/v1/models/v/denoise", content=packed(["a.png"]))
    assert answer.headers["content-type"] == "application/zip"


async def test_a_long_clip_becomes_a_job_that_knows_the_names(client):
    names = [f"{index}.png" for index in range(300)]
    refused = await client.post("/v1/models/v/denoise", content=packed(names))
    assert (refused.status_code, refused.json()["code"]) == (413, "too-large")
    assert "respond-async" in refused.json()["remedy"]
    answer = await client.post("/v1/models/v/denoise", content=packed(names), headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    with reading() as conn:
        spec = jobs.get(conn, "local", answer.json()["id"])["spec"]
    assert unpack_inputs(blobs.get(spec["upload"]))[2] == [str(index) for index in range(300)]


def bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(30 << 20))
    return out.getvalue()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"PK\x03\x04 and nothing more", 422),
        (packed(["readme.txt"]), 422),
        (packed(["a/1.png", "b/1.png"]), 422),
        (packed(["a.png"], zipfile.ZIP_LZMA), 422),
        (packed(["a.png", "b.png"])[:-40], 422),
        (bomb(), 413),
    ],
    ids=["damaged", "no image", "two of a name", "unusual", "cut short", "bomb"],
)
async def test_what_is_no_clip_is_refused(client, lane, body, status):
    answer = await client.post("/v1/models/v/denoise", content=body, headers={"Content-Type": "application/zip"})
    assert answer.status_code == status, answer.text
    assert not lane.seen


def test_random_bytes_raise_nothing_but_problems():
    import random

    draws, whole = random.Random(0), packed(["a.png", "b.png"], zipfile.ZIP_DEFLATED)
    for _ in range(300):
        body = bytearray(whole)
        for _ in range(draws.randint(1, 8)):
            body[draws.randrange(len(body))] = draws.randrange(256)
        try:
            names, files = read_frames(bytes(body), 10)
            assert len(names) == len(files)
        except AnamorphError as error:
            assert error.status < 500
