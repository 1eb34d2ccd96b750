"""Operations over HTTP: inputs in every form, answers in every form, and what is refused before anybody computes."""

import base64
import io
import zipfile

import numpy as np
import pytest

from app.core.errors import Overloaded, WorkerLost
from tests.app.conftest import DIGEST, add_model, end_workers, npy, png

pytestmark = pytest.mark.anyio
PNG, WEBP, JSON, ZIP, NPY = "image/png", "image/webp", "application/json", "application/zip", "application/x-npy"
B64 = base64.b64encode(png()).decode()


@pytest.fixture(autouse=True)
def models(app):
    add_model("v", digest=DIGEST)
    add_model("c", "classifier", digest="fedcba9876543210" * 4)


def inputs(kind: str, count: int = 1) -> dict:
    """Arguments of a request that sends `count` images."""
    return {
        "raw": {"content": png(), "headers": {"Content-Type": "image/png"}},
        "curl": {"content": png(), "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        "untold": {"content": png()},
        "multipart": {"files": [("image", (f"{i}.png", png(i), "image/png")) for i in range(count)]},
        "json": {"json": {"image": B64} if count == 1 else {"images": [B64] * count}},
        "data url": {"json": {"image": f"data:image/png;base64,{B64}"}},
    }[kind]


@pytest.mark.parametrize("kind", ["raw", "curl", "untold", "multipart", "json", "data url"])
async def test_an_image_comes_in_whatever_form_and_goes_to_the_worker_as_it_is(client, lane, kind):
    answer = await client.post("/v1/models/v/denoise", **inputs(kind))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == PNG
    assert answer.content == png(0)
    (call,) = lane.seen
    assert (call.operation, call.images, call.encoding, call.grid) == ("denoise", [png()], "png", False)


@pytest.mark.parametrize(
    "form", [{"json": {"latents": [[1, 2.5]]}}, {"content": npy([[1, 2.5]]), "headers": {"Content-Type": NPY}}]
)
async def test_latents_come_as_json_or_npy(client, lane, form):
    answer = await client.post("/v1/models/v/decode", **form)
    assert answer.status_code == 200, answer.text
    sent = np.load(io.BytesIO(lane.seen[0].latents))
    assert sent.dtype == np.float32 and sent.tolist() == [[1.0, 2.5]]


MATRIX = [
    # operation, images, Accept, media type that comes back
    ("denoise", 1, None, PNG),
    ("denoise", 1, "*/*", PNG),
    ("denoise", 1, "image/*", PNG),
    ("denoise", 1, "image/webp", WEBP),
    ("denoise", 1, "image/webp;q=0.2, application/json", JSON),
    ("denoise", 1, "text/html, application/*;q=0.8", ZIP),
    ("denoise", 1, NPY, NPY),
    ("denoise", 1, "text/html", None),
    ("denoise", 1, "image/png;q=0", None),
    ("denoise", 1, "image/png;q=0, */*", WEBP),
    ("denoise", 3, None, ZIP),
    ("denoise", 3, "image/png", PNG),
    ("denoise", 3, JSON, JSON),
    ("encode", 1, None, JSON),
    ("encode", 2, NPY, NPY),
    ("encode", 1, PNG, None),
    ("interpolate", 2, None, PNG),
    ("interpolate", 2, ZIP, ZIP),
    ("classify", 1, None, JSON),
    ("classify", 1, PNG, None),
    ("attack", 1, None, JSON),
    ("attack", 1, PNG, PNG),
    ("attack", 2, ZIP, ZIP),
]


@pytest.mark.parametrize("operation, count, accept, media", MATRIX)
async def test_the_answer_has_the_form_that_accept_asks_for(client, lane, operation, count, accept, media):
    model = "c" if operation in ("classify", "attack") else "v"
    headers = {"Accept": accept} if accept else {"Accept": ""}
    query = {"method": "fgsm"} if operation == "attack" else {}
    answer = await client.post(
        f"/v1/models/{model}/{operation}", params=query, headers=headers, **inputs("json", count)
    )
    if media is None:
        assert answer.status_code == 406 and answer.json()["remedy"]
        assert not lane.seen, "refused before anything is computed"
        return
    assert (answer.status_code, answer.headers["content-type"]) == (200, media), answer.text
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["x-model-digest"] == lane.seen[0].model
    assert "compute;dur=1.500" in answer.headers["server-timing"]
    many = count > 1 or operation == "interpolate"
    assert lane.seen[0].grid == (many and media in (PNG, WEBP))


async def test_json_of_one_image_and_of_several(client):
    one = (await client.post("/v1/models/v/denoise", headers={"Accept": JSON}, **inputs("json"))).json()
    assert base64.b64decode(one["image"]) == png(0)
    assert one["model"] == "v" and len(one["version"]) == 64 and one["timings"]["total"] > 0
    many = (await client.post("/v1/models/v/denoise", headers={"Accept": JSON}, **inputs("json", 2))).json()
    assert [base64.b64decode(image) for image in many["images"]] == [png(0), png(1)]
    listed = {"json": {"images": [B64]}, "headers": {"Accept": JSON}}
    assert len((await client.post("/v1/models/v/denoise", **listed)).json()["images"]) == 1


async def test_the_shapes_that_clients_rely_on(client):
    said = (await client.post("/v1/models/c/classify", **inputs("raw"))).json()
    assert said["predictions"] == [{"label": "seven", "index": 7, "probability": 0.9}]
    said = (await client.post("/v1/models/c/classify", **inputs("json", 2))).json()
    assert [item["predictions"][0]["label"] for item in said["data"]] == ["seven", "seven"]
    assert (await client.post("/v1/models/v/encode", **inputs("raw"))).json()["latents"] == [[0.5, -1.0]]
    attack = (await client.post("/v1/models/c/attack?method=fgsm&eps=0.1", **inputs("raw"))).json()
    expected = {"success", "success_float", "clean", "adversarial", "eps", "norms", "queries", "image", "perturbation"}
    assert expected <= attack.keys()
    assert base64.b64decode(attack["perturbation"]) == png(9)


async def test_an_attack_as_a_picture_tells_its_facts_in_a_header(client):
    answer = await client.post("/v1/models/c/attack?method=fgsm", headers={"Accept": PNG}, content=png())
    assert answer.content == png(0)
    assert '"success":true' in answer.headers["x-facts"]


async def test_a_zip_has_every_picture_and_the_facts_and_is_the_same_twice(client):
    request = {"params": {"method": "fgsm"}, "headers": {"Accept": ZIP}, **inputs("json", 2)}
    answers = [await client.post("/v1/models/c/attack", **request) for _ in range(2)]
    assert answers[0].content == answers[1].content
    names = zipfile.ZipFile(io.BytesIO(answers[0].content)).namelist()
    assert names == ["0000.png", "0001.png", "0000-perturbation.png", "0001-perturbation.png", "facts.json"]


async def test_parameters_come_from_the_query_or_the_json_body_and_are_completed(client, lane):
    await client.post("/v1/models/c/attack?method=pgd&steps=7&label=3", **inputs("raw"))
    await client.post("/v1/models/c/attack", json={"image": B64, "method": "pgd", "steps": 7, "label": "3"})
    await client.post("/v1/models/c/attack", files={"image": png()}, data={"method": "pgd", "steps": "7", "label": "3"})
    assert [call.params for call in lane.seen] == [
        {"method": "pgd", "label": "3", "eps": "8/255", "steps": 7, "seed": 0}
    ] * 3


REFUSED = [
    # path, request, status, code, pointer
    ("v/denoise", {"content": b""}, 422, "invalid-request", "images"),
    ("v/denoise", {"content": b"GIF89a......"}, 422, "invalid-image", "images/0"),
    ("v/denoise", {"content": b"x", "headers": {"Content-Type": "image/gif"}}, 415, "unsupported-media", None),
    ("v/denoise", {"content": png(), "headers": {"Content-Encoding": "gzip"}}, 415, "unsupported-media", None),
    ("v/denoise", {"json": {"latents": [[1]]}}, 422, "invalid-request", "latents"),
    ("v/denoise", {"json": {"image": "?!"}}, 422, "invalid-request", "/image"),
    ("v/denoise", {"json": {"images": [B64, 7]}}, 422, "invalid-request", "/images/1"),
    ("v/denoise", {"json": {"images": []}}, 422, "invalid-request", "images"),
    ("v/denoise", {"json": {"image": B64, "images": [B64]}}, 422, "invalid-request", "/images"),
    ("v/denoise?colour=1", {"content": png()}, 422, "invalid-request", "colour"),
    ("v/denoise", {"json": {"images": [B64] * 257}}, 422, "invalid-request", None),
    ("v/denoise", {"files": [("file", png())]}, 422, "invalid-request", "image"),
    ("v/decode", {"json": {"latents": [[1, 2], [3]]}}, 422, "invalid-request", "latents"),
    ("v/decode", {"json": {"latents": [[1e39]]}}, 422, "invalid-request", "latents"),
    ("v/decode", {"json": {"latents": [["1"]]}}, 422, "invalid-request", "latents"),
    ("v/decode", {"json": {"latents": []}}, 422, "invalid-request", "latents"),
    ("v/decode", {"content": npy([[np.nan]]), "headers": {"Content-Type": NPY}}, 422, "invalid-request", "latents"),
    ("v/decode", {"content": npy([[1]])[:-1], "headers": {"Content-Type": NPY}}, 422, "invalid-request", "latents"),
    ("c/classify?top=0", {"content": png()}, 422, "invalid-request", "top"),
    ("c/classify?top=two", {"content": png()}, 422, "invalid-request", "top"),
    ("c/classify?top=1&top=2", {"content": png()}, 422, "invalid-request", "top"),
    ("c/classify?top=1", {"json": {"image": B64, "top": 2}}, 422, "invalid-request", "top"),
    ("c/attack", {"content": png()}, 422, "invalid-request", "method"),
    ("c/attack?method=fgms", {"content": png()}, 422, "invalid-request", "method"),
    ("c/attack?method=fgsm&steps=3", {"content": png()}, 422, "invalid-request", "steps"),
    ("c/attack?method=fgsm&eps=9/256", {"content": png()}, 422, "invalid-request", "eps"),
    ("c/denoise", {"content": png()}, 409, "unsupported-operation", None),
    ("w/denoise", {"content": png()}, 404, "not-found", None),
    ("v@ffffffff/denoise", {"content": png()}, 404, "not-found", None),
    ("../denoise", {"content": png()}, 404, "not-found", None),
]


@pytest.mark.parametrize("path, request_, status, code, pointer", REFUSED)
async def test_what_is_wrong_is_named_before_anything_is_computed(client, lane, path, request_, status, code, pointer):
    answer = await client.post(f"/v1/models/{path}", **request_)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    problem = answer.json()
    assert problem["code"] == code and problem["type"] == f"/errors/{code}" and problem["request_id"]
    if pointer is not None:
        assert problem["errors"][0]["pointer"] == pointer
    assert not lane.seen


async def test_similar_names_are_offered(client):
    add_model("digits-vae")
    problem = (await client.post("/v1/models/digits-vea/denoise", content=png())).json()
    assert problem["remedy"] == "Did you mean digits-vae?"
    problem = (await client.post("/v1/models/c/attack?method=fgms", content=png())).json()
    assert problem["remedy"] == "Did you mean fgsm?"
    problem = (await client.post("/v1/models/c/denoise", content=png())).json()
    assert problem["operations"] == ["classify", "attack"]


async def test_a_worker_that_is_busy_or_gone_is_a_503_with_a_time_to_come_back(client, lane, app):
    lane.error = Overloaded("full", retry_after=7)
    answer = await client.post("/v1/models/v/denoise", content=png())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    lane.error = WorkerLost("gone")
    assert (await client.post("/v1/models/v/denoise", content=png())).json()["code"] == "worker-lost"
    await end_workers(app)
    lane.seen.clear()
    answer = await client.post("/v1/models/v/denoise", content=png())
    assert answer.status_code == 503 and not lane.seen, "nobody is there, so nobody waits"


async def test_an_image_larger_than_allowed_is_413(home, client):
    home(max_image_bytes=100)
    answer = await client.post("/v1/models/v/denoise", content=png() + b"0" * 100)
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")


async def test_every_image_operation_of_a_version_is_reached_by_digest(client, lane):
    answer = await client.post("/v1/models/v@01234567/denoise", content=png())
    assert answer.status_code == 200
    assert lane.seen[0].model.startswith("01234567")


async def test_an_operation_answers_under_its_deprecated_name(client, lane):
    add_model("r", "refiner")
    answers = [await client.post(f"/v1/models/r/{name}", content=png()) for name in ("refine", "improve")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [call.operation for call in lane.seen] == ["refine", "improve"]
    paths = (await client.get("/v1/openapi.json")).json()["paths"]
    marks = [paths[f"/v1/models/{{m}}/{name}"]["post"].get("deprecated", False) for name in ("refine", "improve")]
    assert marks == [False, True]
