"""Calls answered together and alone: the same bytes, no harm done by a neighbour, models that come and go."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from app.core.store import blobs
from models.registry import families, operations
from tests import tiny
from tests.workers.trainings import store_dataset
from workers import codecs
from workers.inference import model_cache
from workers.inference.host import Host
from workers.store import models as artifacts

REAL = {name: families()[name] for name in ("autoencoder", "denoising_autoencoder", "vae", "classifier")}
KINDS = [*tiny.FAMILIES.values(), *REAL.values()]
PAIRS = [
    pytest.param(kind, operation, id=f"{kind.name}-{operation.name}")
    for kind in KINDS
    for operation in operations().values()
    if operation.fits(kind) and operation.report is None
]


PARAMS = {
    "directions": {"from": "one", "to": 2, "alphas": [-1, 0.5]},
    "grid": {"rows": 2, "columns": 3},
    "map": {"atlas": 3, "images": 20},
    "neighbours": {"n": 2},
    "project": {"steps": 3},
    "similar": {"index": 5, "neighbours": 2},
}
"""What operations need, or are quicker with."""


@pytest.fixture(autouse=True)
def registered(place, monkeypatch):
    monkeypatch.setattr(artifacts, "families", lambda: tiny.FAMILIES | REAL)


@pytest.fixture
def host() -> Host:
    return Host(1 << 30, torch.device("cpu"))


def published(kind, seed: int = 0) -> str:
    """Real families are large enough for convolutions. The dataset a card names is stored where a test needs it."""
    shape = {"size": side_of(kind)}
    model = tiny.build(kind, seed, **shape)
    for parameter in model.parameters():
        if not parameter.any():  # a layer that starts at zero hides what is before it
            torch.nn.init.normal_(parameter, std=0.1)
    origin = {"dataset": "small", "dataset_digest": data_of(side_of(kind))}
    return artifacts.publish(model, tiny.facts(**shape), {"name": "tiny", "seed": seed, **origin})[0]


def data_of(size: int) -> str:
    """The digest of a dataset of images of this size, stored once."""
    known = [key.split("/")[1] for key, _ in blobs.list("datasets") if key.endswith("facts.json")]
    found = {json.loads(blobs.get(f"datasets/{digest}/facts.json"))["height"]: digest for digest in known}
    return found.get(size) or store_dataset(f"small-{size}", size=size)


def side_of(kind) -> int:
    return 12 if kind.name in REAL else 8


def png(seed: int, size: int = 8, channels: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (1, channels, size, size), dtype=np.uint8)
    return codecs.encode_png(pixels)[0]


def call(digest: str, operation, seed: int = 0, images: int = 1, size: int = 8, **more) -> dict:
    asked = {"model": digest, "operation": operation.name, "params": {}, "encoding": "png"}
    if operation.takes == "images":
        asked["images"] = [png(seed + index, size) for index in range(images)]
    elif operation.takes != "nothing":
        latents = np.random.default_rng(seed).normal(size=(max(images, 2), artifacts.load_model(digest).latent_dim))
        asked["latents"] = codecs.encode_npy(latents.astype(np.float32))
    elif "n" in operation.Params.model_fields:
        asked["params"] = {"seed": seed, "n": images}
    asked["params"] |= PARAMS.get(operation.name, {})
    return asked | more


def bare(outcome: dict) -> dict:
    """An answer without its timings and its share of them."""
    assert "answer" in outcome, outcome
    return {name: value for name, value in outcome["answer"].items() if name not in ("timings", "share")}


def calls_of(kind, operation, digest: str) -> list[dict]:
    found = []
    for seed in range(9):
        found.append(call(digest, operation, seed, 1 + seed % 3, side_of(kind)))
        if kind is tiny.TinyGenerator:
            found[-1]["params"]["label"] = seed % 3
    return found


@pytest.mark.parametrize(("kind", "operation"), PAIRS)
def test_a_call_gives_the_same_bytes_alone_and_in_any_batch(host, kind, operation):
    asked = calls_of(kind, operation, published(kind))
    alone = [bare(host.execute([one])[0]) for one in asked]
    assert [bare(outcome) for outcome in host.execute(asked)] == alone
    assert [bare(outcome) for outcome in host.execute(asked[::-1])] == alone[::-1]
    later = Host(1 << 30, torch.device("cpu"))  # another process would be no different
    assert bare(later.execute([asked[3]])[0]) == alone[3]


def test_calls_to_several_models_and_operations_are_answered_in_their_order(host):
    able = [param.values for param in PAIRS]
    asked = [one for kind, operation in able for one in calls_of(kind, operation, published(kind))[:2]]
    mixed = asked[::2] + asked[1::2]
    assert [bare(outcome) for outcome in host.execute(mixed)] == [bare(host.execute([one])[0]) for one in mixed]


def test_images_come_back_as_the_model_computed_them(host):
    digest, denoise = published(tiny.TinyAutoencoder), operations()["denoise"]
    sent = call(digest, denoise, images=3, encoding="npy")
    (array,) = bare(host.execute([sent])[0])["images"]
    inputs = codecs.to_tensor(codecs.decode_batch(tiny.facts(), sent["images"]))
    wanted = artifacts.load_model(digest).denoise(inputs)
    assert torch.allclose(torch.from_numpy(codecs.decode_npy(array)), wanted, atol=1e-6)
    pngs = bare(host.execute([sent | {"encoding": "png"}])[0])["images"]
    assert np.array_equal(codecs.decode_batch(tiny.facts(), pngs), codecs.to_uint8(wanted))


def test_a_sheet_is_one_picture_of_all(host):
    samples = call(published(tiny.TinyAutoencoder), operations()["samples"], images=9, grid=True)
    (sheet,) = bare(host.execute([samples])[0])["images"]
    assert codecs.decode(sheet).shape == (1, 3 * 8 + 2 * 2, 3 * 8 + 2 * 2)


def test_bad_calls_get_problems_and_their_neighbours_get_answers(host):
    digest, denoise = published(tiny.TinyAutoencoder), operations()["denoise"]
    good = call(digest, denoise)
    bad = {
        "invalid-image": good | {"images": [png(0), b"not an image"]},
        "not-found": good | {"model": "0" * 64},
        "unsupported-operation": good | {"operation": "classify"},
        "invalid-request": good | {"params": {"colour": "red"}},
    }
    outcomes = host.execute([good, *bad.values(), good])
    assert [outcome["problem"]["code"] for outcome in outcomes[1:-1]] == list(bad)
    assert bare(outcomes[0]) == bare(outcomes[-1]) == bare(host.execute([good])[0])
    assert "denoise" in outcomes[3]["problem"]["operations"]
    assert outcomes[4]["problem"]["errors"][0]["pointer"] == "colour"


@pytest.mark.parametrize(
    ("operation", "change", "code"),
    [
        ("denoise", {"images": [png(0, size=9)]}, "invalid-image"),
        ("denoise", {"images": None}, "invalid-request"),
        ("decode", {"latents": None}, "invalid-request"),
        ("decode", {"latents": codecs.encode_npy(np.zeros((2, 5), np.float32))}, "invalid-request"),
        ("decode", {"latents": b"\x93NUMPY"}, "invalid-request"),
        ("decode", {"params": {"label": "no such class"}}, "invalid-request"),
        ("samples", {"params": {"n": 0}}, "invalid-request"),
        ("interpolate", {"params": {"steps": 1}}, "invalid-request"),
    ],
)
def test_what_does_not_fit_is_a_client_error(host, operation, change, code):
    asked = call(published(tiny.TinyAutoencoder), operations()[operation]) | change
    (outcome,) = host.execute([asked])
    assert outcome["problem"]["code"] == code and outcome["problem"]["status"] == 422


def test_the_remedy_for_a_wrong_size_is_one_that_the_operation_takes(host):
    for kind, name in ((tiny.TinyAutoencoder, "denoise"), (tiny.TinyClassifier, "attack")):
        operation = operations()[name]
        asked = call(published(kind), operation) | {"images": [png(0, size=9)]}
        remedy = host.execute([asked])[0]["problem"]["remedy"]
        assert ("resize" in remedy) == ("resize" in operation.Params.model_fields)


def test_a_call_that_breaks_its_batch_is_the_only_one_to_fail(host, monkeypatch):
    digest, denoise = published(tiny.TinyAutoencoder), operations()["denoise"]
    asked = [call(digest, denoise, seed) for seed in range(3)]
    wanted = [bare(outcome) for outcome in host.execute(asked)]
    black = codecs.encode_png(np.zeros((1, 1, 8, 8), np.uint8))
    compute = denoise.compute

    def fragile(self, model, rows, params):
        if bool((rows["inputs"].flatten(1).sum(1) == 0).any()):
            raise RuntimeError("cannot stand black images")
        return compute(self, model, rows, params)

    monkeypatch.setattr(denoise, "compute", fragile)
    outcomes = host.execute([*asked, asked[0] | {"images": black}])
    assert [bare(outcome) for outcome in outcomes[:3]] == wanted
    assert outcomes[3]["problem"]["code"] == "internal"
    assert "black" not in outcomes[3]["problem"]["detail"]


def test_images_can_be_anchors_of_an_interpolation(host):
    digest = published(tiny.TinyAutoencoder)
    asked = {"model": digest, "operation": "interpolate", "params": {"steps": 3}, "images": [png(1), png(2)]}
    assert len(bare(host.execute([asked | {"encoding": "png"}])[0])["images"]) == 3


def test_the_least_recently_used_models_make_room(place):
    digests = [published(tiny.TinyAutoencoder, seed) for seed in range(3)]
    one = model_cache.ModelCache(1 << 30, torch.device("cpu")).get(digests[0]).bytes
    kept = model_cache.ModelCache(2 * one, torch.device("cpu"))
    first = kept.get(digests[0])
    kept.get(digests[1])
    assert kept.get(digests[0]) is first
    kept.get(digests[2])
    assert kept.digests == [digests[0], digests[2]]
    assert model_cache.ModelCache(1, torch.device("cpu")).get(digests[0]).model is not None  # too big, served anyway


def test_a_model_is_loaded_once_however_many_ask_for_it(host, monkeypatch):
    digest, loads, load = published(tiny.TinyAutoencoder), [], artifacts.load_model

    def slow(wanted):
        loads.append(wanted)
        time.sleep(0.05)
        return load(wanted)

    monkeypatch.setattr(model_cache, "load_model", slow)
    start = threading.Barrier(6)

    def ask():
        start.wait()
        return host.models.get(digest)

    with ThreadPoolExecutor(6) as pool:
        found = [future.result() for future in [pool.submit(ask) for _ in range(6)]]
    assert loads == [digest] and all(each is found[0] for each in found)


def test_a_model_that_could_not_be_loaded_is_tried_again(host):
    digest = published(tiny.TinyAutoencoder)
    key = artifacts.model_key(digest, "weights.safetensors")
    weights = blobs.get(key)
    blobs.put(key, weights[:-4] + b"\0\0\0\1", create_only=False)
    asked = call(digest, operations()["denoise"])
    assert host.execute([asked])[0]["problem"]["code"] == "storage-damaged"
    blobs.put(key, weights, create_only=False)
    assert "answer" in host.execute([asked])[0]


def test_concurrent_threads_get_the_same_answers(host):
    able = [param.values for param in PAIRS if param.values[0] in tiny.FAMILIES.values()]
    able = [(kind, operation) for kind, operation in able if operation.name != "project"]  # slow, and alike
    asked = [calls_of(kind, operation, published(kind)) for kind, operation in able]
    alone = [[bare(outcome) for outcome in host.execute(some)] for some in asked]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(host.execute, asked * 3))
    assert [[bare(outcome) for outcome in some] for some in found] == alone * 3


def test_an_answer_says_how_long_it_took(host):
    outcome = host.execute([call(published(tiny.TinyAutoencoder), operations()["denoise"])])[0]
    assert set(outcome["answer"]["timings"]) == {"decode", "compute", "encode"}
    assert all(0 <= value < 10_000 for value in outcome["answer"]["timings"].values())


LONG = [
    ("certify", {"n": 1_000_000}),
    ("attack", {"method": "square", "queries": 100_000, "eps": 0}),
    ("attack", {"method": "hopskipjump", "steps": 64, "budget": 1_000_000}),
]


@pytest.mark.parametrize(("name", "params"), LONG, ids=[params.get("method", name) for name, params in LONG])
def test_computations_past_the_deadline_are_abandoned(host, name, params):
    digest, operation = published(tiny.TinyClassifier), operations()[name]
    late = call(digest, operation, params=params, deadline=time.monotonic() + 0.3)
    in_time = call(digest, operations()["classify"], seed=3)
    started = time.perf_counter()
    given_up, answered = host.execute([late, in_time])
    assert time.perf_counter() - started < 20  # a million passes take far longer
    assert given_up["problem"]["code"] == "deadline-exceeded", given_up
    assert bare(answered) == bare(host.execute([in_time])[0])
