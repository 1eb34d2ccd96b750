"""Calls computed by ONNX Runtime: the same answers as torch's but for the last bits, alone as in any company."""

import io

import numpy as np
import pytest
import torch

from app.core.settings import settings
from app.core.store import blobs
from models.registry import families
from tests.models.data import for_family
from workers import codecs
from workers.inference.host import Host
from workers.store.models import model_key, publish


@pytest.fixture
def host(place, monkeypatch):
    """A function from an executor to a host with it."""

    def made(executor: str) -> Host:
        monkeypatch.setenv("ANAMORPH_EXECUTOR", executor)
        settings.cache_clear()
        return Host(1 << 30, torch.device("cpu"))

    yield made
    settings.cache_clear()


def published(family: str) -> str:
    kind = families()[family]
    data = for_family(kind, (1, 16, 16))[0]
    torch.manual_seed(1)
    config = {"body": "mlp", "hidden": [32], "latent_dim": 8}
    model = kind.create({"images": 32, **config}, data).eval().requires_grad_(False)
    if family == "classifier":
        torch.nn.init.normal_(model.head.weight)
    facts = {"layout": "labelled", "height": 16, "width": 16, "channels": 1, "classes": data.classes, "columns": {}}
    return publish(model, facts, {"name": family})[0]


def calls(digest: str, operation: str, count: int, **params) -> list[dict]:
    draws = np.random.default_rng(0)
    images = codecs.encode_png(draws.integers(0, 256, (count, 1, 16, 16), dtype=np.uint8))
    call = {"model": digest, "operation": operation, "params": params, "encoding": "npy"}
    return [call | {"images": [image]} for image in images]


def pixels(outcome: dict) -> np.ndarray:
    return np.load(io.BytesIO(outcome["answer"]["images"][0]))


def test_answers_are_torchs_but_for_the_last_bits_and_free_of_company(host):
    digest = published("autoencoder")
    asked = calls(digest, "reconstruct", 7)
    plain, fast = host("torch").execute(asked), host("onnx")
    together = fast.execute(asked)
    assert fast.models.get(digest).forward is not None and blobs.exists(model_key(digest, "decoder.onnx"))
    for one, call, other in zip(together, asked, plain, strict=True):
        assert one["answer"]["images"] == fast.execute([call])[0]["answer"]["images"]
        assert np.allclose(pixels(one), pixels(other), atol=1e-4)


def test_what_needs_gradients_stays_with_torch(host):
    digest = published("classifier")
    asked = calls(digest, "attack", 1, method="fgsm", eps=0.1)
    answers = [host(executor).execute(asked)[0]["answer"] for executor in ("torch", "onnx")]
    assert answers[0]["images"] == answers[1]["images"]
