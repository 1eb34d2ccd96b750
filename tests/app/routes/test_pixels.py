"""What decoding the images of a request would cost is summed from headers, and bounded, before a worker sees it."""

import base64
import io
import struct
import zipfile
import zlib

import pytest

from app.api.calls import inputs
from app.core.images import read_header
from app.core.settings import settings
from tests.app.conftest import add_model, png

pytestmark = pytest.mark.anyio


def head(side: int, depth: int = 16, colour: int = 6) -> bytes:
    """The header of a PNG without pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.fixture(autouse=True)
def models(app):
    add_model("v")
    add_model("c", "classifier", digest="fedcba9876543210" * 4)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def zipped(files: list[bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index, data in enumerate(files):
            archive.writestr(f"{index}.png", data)
    return out.getvalue()


FORMS = {
    "multipart": lambda files: {"files": [("image", (f"{i}.png", data)) for i, data in enumerate(files)]},
    "json": lambda files: {"json": {"images": [text(data) for data in files]}},
    "zip": lambda files: {"content": zipped(files), "headers": {"Content-Type": "application/zip"}},
}


@pytest.mark.parametrize("form", FORMS)
async def test_the_images_of_a_call_are_refused_together_before_a_worker_decodes_one(client, lane, form):
    few, many = [head(4000)] * 2, [head(4000)] * 190
    assert sum(read_header(data).cost for data in few) < settings().call_pixels
    assert (await client.post("/v1/models/v/denoise", **FORMS[form](few))).status_code == 200
    lane.seen.clear()
    answer = await client.post("/v1/models/v/denoise", **FORMS[form](many))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (413, "too-large"), answer.text
    assert f"{settings().call_pixels:,}" in problem["detail"] and "respond-async" in problem["remedy"]
    assert not lane.seen


async def test_a_job_may_take_more_but_not_everything(client):
    prefer = {"Prefer": "respond-async"}
    files = FORMS["multipart"]([head(4000)] * 20)
    assert (await client.post("/v1/models/v/denoise", headers=prefer, **files)).status_code == 202
    answer = await client.post("/v1/models/v/denoise", headers=prefer, **FORMS["multipart"]([head(4000)] * 190))
    assert answer.status_code == 413 and f"{settings().job_pixels:,}" in answer.json()["detail"]
    assert "respond-async" not in answer.json()["remedy"]


async def test_pictures_that_are_parameters_count_too(client, lane):
    large = text(head(4000, 8, 0) + bytes(300_000))
    for count in (1, 2):
        names = ("mask", "truth")[:count]
        sent = inputs.Inputs(images=[png()], rows=1, params=dict.fromkeys(names, large))
        inputs.count_pixels(sent, settings().call_pixels)
        assert sent.decode_pixels > count * 2_000_000 and sent.pixels == 64
    with pytest.raises(Exception, match="count as"):
        inputs.count_pixels(sent, 3_000_000)
    sent.params = {"mask": text(head(20_000))}
    with pytest.raises(Exception, match="pixels") as caught:
        inputs.count_pixels(sent, settings().call_pixels)
    assert caught.value.field == "mask"


@pytest.mark.parametrize("data", [head(20_000), b"\xff\xd8" + b"\xff\xfe\0\2" * 1_000_000, b"\x89PNG\r\n\x1a\n"])
async def test_a_header_that_is_invalid_is_refused_by_the_front(client, lane, data):
    answer = await client.post("/v1/models/v/denoise", content=data, headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-image"), answer.text
    assert not lane.seen


async def test_small_images_cost_little(client):
    sent = inputs.Inputs(images=[png(side=28)] * 256, rows=256)
    inputs.count_pixels(sent, settings().call_pixels)
    assert sent.decode_pixels < 500_000
    answer = await client.post("/v1/models/v/denoise", json={"image": "https://example.org/x.png"})
    assert answer.status_code == 422 and answer.json()["detail"] == "URLs are not fetched."


async def test_a_call_whose_images_are_costly_holds_up_no_others(client, lane):
    for data in (png(), head(2000)):
        await client.post("/v1/models/v/denoise", content=data, headers={"Content-Type": "image/png"})
    assert [call.slow for call in lane.seen] == [False, True]
