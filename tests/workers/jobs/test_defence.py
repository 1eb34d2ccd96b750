"""The job that puts defences in front of a classifier, and the model it leaves behind."""

import pytest
import torch

from app.core.store import blobs
from app.core.store import models as model_table
from app.core.store.database import reading
from models.families.autoencoders.autoencoder import Autoencoder
from models.families.classifiers.classifier import Classifier
from models.types import ConfigError, DataSpec
from tests.workers.trainings import TENANT, accept, attempt, finish, store_dataset
from workers.inference.host import Host
from workers.jobs.kinds.defence import run_defence
from workers.store import model_rows
from workers.store.models import load_model, publish


@pytest.fixture(autouse=True)
def there(place, monkeypatch):
    monkeypatch.setattr("workers.jobs.kinds.defence.devices.use_threads", lambda wanted: None)


def published(family, name: str, digest: str, **config) -> str:
    """A model with random weights, said to have learned from the stored dataset."""
    import json

    facts = json.loads(blobs.get(f"datasets/{digest}/facts.json"))
    torch.manual_seed(0)
    model = family.create({"images": 8, **config}, DataSpec.from_facts(facts))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    extra = {"name": name, "dataset": "small", "dataset_digest": digest, "metrics": {}, "seed": 0}
    found, card = publish(model, facts, extra | {"licence": None, "attribution": None})
    from app.core.store.database import transaction

    with transaction() as conn:
        model_rows.register(conn, tenant=TENANT, card=card, job_id=None)
    return found


def made(**spec) -> tuple[dict, str]:
    spec = {"stages": [{"kind": "jpeg", "quality": 75}], "detector": {"kind": "squeezing"}, "name": "guarded"} | spec
    job = attempt(accept(kind="defence", model="judge", dataset=None, **spec))
    result = run_defence(job)
    finish(job, result)
    return result.value, result.value["version"]


def test_the_job_makes_a_model_that_answers_calls_and_outlives_its_parts():
    data = store_dataset()
    published(Classifier, "judge", data, width=4)
    published(Autoencoder, "coder", data, latent_dim=4)
    stages = [{"kind": "purify", "model": "coder"}, {"kind": "noise", "sigma": 0.1}]
    value, digest = made(stages=stages, draws=2)
    assert {"accuracy", "accuracy_undefended", "threshold", "images"} <= value["metrics"].keys()
    with reading() as conn:
        for name in ("judge", "coder"):
            blobs.delete_prefix(f"models/{model_table.resolve(conn, TENANT, name).digest}")
    model = load_model(digest)
    assert model.name == "defended" and model.threshold == value["metrics"]["threshold"]
    image = (torch.rand(1, 8, 8) * 255).byte()
    from workers import codecs

    png = codecs.encode(image[None] / 255.0, "png")[0]
    host = Host(1 << 30, torch.device("cpu"))
    calls = {
        "classify": {"top": 3},
        "detect": {},
        "certify": {"n": 20, "seed": 1},
        "attack": {"method": "fgsm", "eps": 0.1},
    }
    for operation, params in calls.items():
        call = {"model": digest, "operation": operation, "params": params, "images": [png], "encoding": "png"}
        (first,), (second,) = host.execute([call]), host.execute([call])
        assert "answer" in first, first
        assert first["answer"]["facts"] == second["answer"]["facts"]


def test_a_detector_is_taught_by_the_job():
    published(Classifier, "judge", store_dataset(), width=4)
    lesson = {"kind": "trained", "attacks": ["pgd"], "images": 64, "eps": 0.3}
    value, digest = made(detector=lesson)
    model = load_model(digest)
    assert model.threshold == value["metrics"]["threshold"] and model.detector.mean.abs().sum() > 0
    assert made(detector=lesson)[1] == digest


def test_the_same_request_is_the_same_model_and_another_stage_another():
    published(Classifier, "judge", store_dataset(), width=4)
    assert made()[1] == made()[1] != made(stages=[{"kind": "jpeg", "quality": 20}])[1]


def test_without_clean_images_there_is_no_threshold_and_a_warning():
    data = store_dataset()
    published(Classifier, "judge", data, width=4)
    blobs.delete_prefix(f"datasets/{data}")
    value, digest = made()
    assert value["warnings"] and value["metrics"] == {} and load_model(digest).threshold is None


def test_a_dataset_of_another_size_is_refused_by_name():
    published(Classifier, "judge", store_dataset(), width=4)
    store_dataset("large", size=12, seed=2)
    with pytest.raises(ConfigError) as caught:
        run_defence(attempt(accept(kind="defence", model="judge", name="x", stages=[], dataset="large")))
    assert caught.value.field == "dataset"
