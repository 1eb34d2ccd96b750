"""The front and the real inference host in one process: what a client sends is what a model sees, and comes back."""

import io
import json
import struct
import zlib

import httpx
import msgpack
import numpy as np
import pytest
from PIL import Image

from app.core import catalog
from app.core.calls.client import Answer, Call
from app.core.calls.messages import pack_calls
from app.core.errors import from_problem
from app.core.store import database
from app.core.store.database import transaction
from app.main import create_app
from tests import tiny
from workers.inference import host
from workers.store import model_rows
from workers.store import models as artifacts

pytestmark = pytest.mark.anyio


class Lane:
    """Hands each call to the host, through the bytes that would go over the wire."""

    waiting_weight = batches_out = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def ping(self) -> bool:
        return True

    async def recover(self) -> None: ...

    async def submit(self, call: Call) -> Answer:
        (sent,) = msgpack.unpackb(pack_calls("nowhere", [(1, call)]))["calls"]
        (outcome,) = host.execute([sent])
        if "problem" in outcome:
            raise from_problem(outcome["problem"])
        return Answer(**msgpack.unpackb(msgpack.packb(outcome["answer"])))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def client(storage, sqlite_url, monkeypatch, anyio_backend):
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    database.settings.cache_clear()
    database.engine.cache_clear()
    monkeypatch.setattr(artifacts, "families", lambda: tiny.FAMILIES)
    monkeypatch.setattr(host.devices, "use_threads", lambda wanted: None)
    for kind in (tiny.TinyAutoencoder, tiny.TinyClassifier):
        family = tiny.build(kind)
        _, card = artifacts.publish(family, tiny.facts(), {"name": kind.name, "seed": 0, "metrics": {}})
        with transaction() as conn:
            model_rows.register(conn, tenant="local", card=card, job_id=None)
    app = create_app(catalog.load(), Lane())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client
    host.host.cache_clear()
    database.engine().dispose()
    database.engine.cache_clear()


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def gray(mode: str = "L", size: tuple[int, int] = (8, 8)) -> Image.Image:
    values = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1])
    return Image.fromarray(values).convert(mode)


def header_bomb(side: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


async def test_a_picture_goes_in_and_a_picture_comes_out(client):
    answer = await client.post("/v1/models/tiny_autoencoder/denoise", content=saved(gray()))
    assert answer.status_code == 200, answer.text
    image = Image.open(io.BytesIO(answer.content))
    assert (image.size, image.mode) == ((8, 8), "L")


READABLE = {
    "webp": saved(gray(), "WEBP", lossless=True),
    "jpeg": saved(gray(), "JPEG"),
    "colour": saved(gray("RGB")),
    "palette": saved(gray("P")),
    "alpha": saved(gray("LA")),
    "16 bit": saved(Image.fromarray(np.full((8, 8), 1000, np.uint16))),
    "CMYK": saved(gray("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("name", READABLE)
async def test_unusual_pictures_are_read(client, name):
    answer = await client.post("/v1/models/tiny_autoencoder/reconstruct", content=READABLE[name])
    assert answer.status_code == 200, answer.text


HOSTILE = {
    "text": b"no picture at all",
    "truncated": saved(gray())[:50],
    "cut head": saved(gray())[:20],
    "magic alone": b"\x89PNG\r\n\x1a\n",
    "animated": saved(gray("P"), "WEBP", save_all=True, append_images=[gray("P", (8, 8)).rotate(90)]),
    "one pixel": saved(gray(size=(1, 1))),
    "other size": saved(gray(size=(9, 8))),
    "header bomb": header_bomb(20_000),
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "path", ["tiny_autoencoder/denoise", "tiny_classifier/classify", "tiny_classifier/attack?method=fgsm"]
)
async def test_pictures_that_cannot_be_used_are_refused_with_a_reason(client, name, path):
    answer = await client.post(f"/v1/models/{path}", content=HOSTILE[name])
    assert answer.status_code in (413, 422), answer.text
    problem = answer.json()
    assert problem["code"] in ("invalid-image", "invalid-request", "too-large") and len(problem["detail"]) > 10


async def test_one_bad_picture_of_several_is_named(client):
    files = [("image", saved(gray())), ("image", saved(gray())[:50])]
    answer = await client.post("/v1/models/tiny_autoencoder/denoise", files=files)
    assert answer.status_code == 422
    assert "1" in json.dumps(answer.json()["errors"])


async def test_codes_go_round(client):
    codes = (await client.post("/v1/models/tiny_autoencoder/encode", content=saved(gray()))).json()["latents"]
    image = await client.post("/v1/models/tiny_autoencoder/decode", json={"latents": codes})
    whole = await client.post("/v1/models/tiny_autoencoder/reconstruct", content=saved(gray()))
    assert image.content == whole.content
    way = await client.post(
        "/v1/models/tiny_autoencoder/interpolate", json={"latents": [*codes, [0, 0, 0]], "steps": 3}
    )
    assert Image.open(io.BytesIO(way.content)).size == (18, 18), "three images on one sheet"


async def test_the_same_address_gives_the_same_bytes_and_a_prefix_of_more(client):
    here = "/v1/models/tiny_autoencoder/samples"
    headers = {"Accept": "application/json"}
    few, more = [(await client.get(here, params={"n": n, "seed": 5}, headers=headers)).json() for n in (2, 5)]
    assert more["images"][:2] == few["images"] and len(more["images"]) == 5
    assert len(few["latents"]) == 2 and few["seed"] == 5


async def test_an_attack_is_true_of_the_bytes_it_sends(client):
    here = "/v1/models/tiny_classifier"
    found = (await client.post(f"{here}/attack?method=fgsm&eps=0.3", content=saved(gray()))).json()
    again = await client.post(f"{here}/classify", json={"image": found["image"]})
    assert again.json()["predictions"][0]["label"] == found["adversarial"]["label"]
    assert found["success"] == (found["adversarial"]["label"] != found["clean"]["label"])
    assert found["norms"]["linf"] <= 0.3 + 1e-6


async def test_a_class_that_is_not_there_is_named(client):
    answer = await client.post("/v1/models/tiny_classifier/attack?method=fgsm&label=nobody", content=saved(gray()))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "label")
