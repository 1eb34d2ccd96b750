"""The operation of docs/extend/operation.md is found by the registry, described, batched and answered."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import models.operations as package
from models import registry
from models.catalog import describe_operation
from tests import tiny
from tests.workers.conftest import storage  # noqa: F401 a fixture
from workers import codecs
from workers.inference import model_cache
from workers.inference.host import Host
from workers.store import models as published

PAGE = Path(__file__).parents[3] / "docs" / "extend" / "operation.md"


@pytest.fixture
def operation(tmp_path) -> type:
    """The class of the page, found by the registry like any file of the folder."""
    (tmp_path / "saliency.py").write_text(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1])
    package.__path__.append(str(tmp_path))
    registry.members.cache_clear()
    yield registry.operations()["saliency"]
    package.__path__.remove(str(tmp_path))
    registry.members.cache_clear()
    del sys.modules[f"{package.__name__}.saliency"]


@pytest.fixture
def digest(operation, storage, monkeypatch) -> str:  # noqa: F811
    """A published classifier of 8x8 images, on storage of its own."""
    monkeypatch.setattr(published, "families", lambda: tiny.FAMILIES)
    return published.publish(tiny.build(tiny.TinyClassifier), tiny.facts(), {"name": "tiny"})[0]


def call(digest: str, seeds: list[int], **params) -> dict:
    images = [
        codecs.encode_png(np.random.default_rng(seed).integers(0, 256, (1, 1, 8, 8), dtype=np.uint8))[0]
        for seed in seeds
    ]
    return {"model": digest, "operation": "saliency", "params": params, "encoding": "npy", "images": images}


def maps(outcome: dict) -> np.ndarray:
    return np.concatenate([codecs.decode_npy(part) for part in outcome["answer"]["images"]])


def test_example_is_described_for_the_catalog(operation):
    entry = describe_operation(operation)
    assert entry["needs"] == ["Classifies"] and entry["takes"] == entry["gives"] == "images"
    assert set(entry["params"]["properties"]) == {"resize", "label"}


def test_example_answers_the_same_alone_and_in_a_batch(operation, digest):
    assert model_cache.operations()["saliency"] is operation
    host = Host(1 << 30, torch.device("cpu"))
    calls = [call(digest, [1, 2, 3]), call(digest, [4], label=2), call(digest, [5, 6], label="class 1")]
    together = host.execute(calls)
    for one, outcome in zip(calls, together, strict=True):
        assert np.array_equal(maps(host.execute([one])[0]), maps(outcome))
    assert [item["index"] for item in together[2]["answer"]["facts"]["items"]] == [1, 1]


def test_example_shows_the_gradient_of_the_requested_class(operation, digest):
    outcome = Host(1 << 30, torch.device("cpu")).execute([call(digest, [7], label=1)])[0]
    model = published.load_model(digest)
    images = codecs.to_tensor(codecs.decode_batch(tiny.facts(), call(digest, [7])["images"])).requires_grad_()
    (gradient,) = torch.autograd.grad(model.logits(images)[:, 1].sum(), images)
    expected = gradient.abs().amax(1, keepdim=True)
    assert np.allclose(maps(outcome), (expected / expected.max()).numpy(), atol=1e-6)


def test_example_refuses_an_unknown_class(operation, digest):
    outcome = Host(1 << 30, torch.device("cpu")).execute([call(digest, [1], label="none such")])[0]
    assert outcome["problem"]["status"] == 422
