"""ONNX export: the file answers as the model does, whatever the batch, and a file that would not is never kept."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from app.core.errors import AnamorphError, UnsupportedOperation
from app.core.store import blobs
from models.export import graph, parts
from models.registry import families
from tests.models.data import for_family
from tests.workers import trainings
from workers.jobs.kinds.export import run_export
from workers.onnx import exporter
from workers.store.models import model_key, publish


def published(family: str = "autoencoder", **config) -> tuple[str, torch.nn.Module]:
    kind = families()[family]
    data = for_family(kind)[0]
    torch.manual_seed(0)
    model = kind.create({"images": 32, **config}, data).eval().requires_grad_(False)
    facts = {"layout": data.layout, "height": 8, "width": 8, "channels": 1, "classes": None, "columns": {}}
    return publish(model, facts, {"name": "mine"})[0], model


def export(digest: str, **spec) -> dict:
    job = trainings.attempt(trainings.accept(kind="export", model=digest, **spec))
    return run_export(job).value


def test_an_exported_part_answers_as_the_model_for_any_batch(place):
    digest, model = published(body="mlp")
    facts = export(digest)
    assert facts["part"] == "encoder" and facts["inputs"] == {"images": ["batch", 1, 8, 8]}
    assert facts["difference"] <= exporter.TOLERANCE
    session = onnxruntime.InferenceSession(blobs.get(model_key(digest, "encoder.onnx")))
    for size in (1, 7):
        images = torch.rand(size, 1, 8, 8)
        (codes,) = session.run(["latents"], {"images": images.numpy()})
        assert np.allclose(codes, model.encode(images).numpy(), atol=1e-5)
    assert json.loads(blobs.get(model_key(digest, "default.onnx.json")))["part"] == "encoder"


def test_a_part_the_model_lacks_is_named_beside_those_it_has(place):
    digest, _ = published(body="mlp")
    with pytest.raises(UnsupportedOperation, match="no part judge") as caught:
        export(digest, part="judge")
    assert caught.value.remedy == "It has encoder, decoder."


def test_a_file_that_answers_otherwise_is_not_kept(place, monkeypatch):
    digest, _ = published(body="mlp")
    other = graph(published(body="mlp", latent_dim=8)[1].requires_grad_(False), "decoder")
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.mul_(1.1)
    wrong = exporter.to_onnx(other)
    monkeypatch.setattr(exporter, "to_onnx", lambda found: wrong)
    with pytest.raises(AnamorphError, match="differs from the model"):
        export(digest, part="decoder")
    assert not blobs.exists(model_key(digest, "decoder.onnx"))


def test_every_family_that_answers_has_parts():
    for name, family in families().items():
        data = for_family(family, (1, 16, 16))[0]
        assert parts(family.create({}, data)), name
