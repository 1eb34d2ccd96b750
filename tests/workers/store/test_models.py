"""Published models: what is said of one that cannot be built or whose files are lost, and how it comes back."""

import pytest
import torch
from torch import nn

from app.core.errors import Conflict, NotFound, StorageDamaged
from app.core.store import blobs
from app.core.store.database import transaction
from models.families.autoencoders.autoencoder import Autoencoder
from models.types import DataSpec
from tests.workers import trainings
from workers.data import open_dataset
from workers.store import model_rows
from workers.store import models as artifacts

pytestmark = pytest.mark.usefixtures("place")
FACTS = {"layout": "plain", "height": 8, "width": 8, "channels": 1, "classes": None}


class Later(Autoencoder):
    """The same family in a release that gave it one layer more."""

    def __init__(self, config, data):
        super().__init__(config, data)
        self.polish = nn.Conv2d(1, 1, 3)


def test_a_model_of_a_release_with_other_networks_is_a_conflict(monkeypatch):
    torch.manual_seed(0)
    model = Autoencoder.create({"body": "mlp", "images": 64}, DataSpec.from_facts(FACTS))
    digest, _ = artifacts.publish(model, FACTS, {"name": "old", "seed": 0, "metrics": {}})
    assert artifacts.load_model(digest).latent_dim == model.latent_dim
    monkeypatch.setattr(artifacts, "families", lambda: {"autoencoder": Later})
    with pytest.raises(Conflict, match="release") as caught:
        artifacts.load_model(digest)
    assert "again" in caught.value.remedy


def published() -> tuple[Autoencoder, str, dict]:
    torch.manual_seed(0)
    model = Autoencoder.create({"body": "mlp", "images": 64}, DataSpec.from_facts(FACTS))
    digest, card = artifacts.publish(model, FACTS, {"name": "m", "seed": 0, "metrics": {}})
    return model, digest, card


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_a_model_whose_files_are_lost_is_damaged_and_one_that_was_deleted_is_not_found(name):
    _, digest, card = published()
    blobs.delete_prefix(artifacts.model_key(digest, name))
    with pytest.raises(NotFound):
        artifacts.load_model(digest)
    with transaction() as conn:
        model_rows.register(conn, tenant="local", card=card, job_id=None)
    with pytest.raises(StorageDamaged, match="missing") as caught:
        artifacts.load_model(digest)
    assert "doctor --blobs" in caught.value.remedy and "again" in caught.value.remedy


@pytest.mark.parametrize("name", ["weights.safetensors", "card.json"])
def test_publishing_the_same_model_again_repairs_its_files(name):
    model, digest, _ = published()
    key = artifacts.model_key(digest, name)
    good = blobs.get(key)
    blobs.put(key, good[:-2] + b"??", create_only=False)
    with pytest.raises(StorageDamaged, match="damaged"):
        artifacts.load_model(digest)
    assert artifacts.publish(model, FACTS, {"name": "m", "seed": 0, "metrics": {}})[0] == digest
    assert blobs.get(key) == good
    artifacts.load_model(digest)


def test_a_training_on_damaged_images_is_refused():
    digest = trainings.store_dataset()
    key = f"datasets/{digest}/train/images.npy"
    good = blobs.get(key)
    open_dataset(digest, verify=True)
    blobs.put(key, good[:-1] + bytes([good[-1] ^ 1]), create_only=False)
    with pytest.raises(StorageDamaged, match="damaged"):
        open_dataset(digest, verify=True)
    for damage in (lambda: blobs.put(key, good[:-1], create_only=False), lambda: blobs.delete_prefix(key)):
        damage()
        with pytest.raises(StorageDamaged):
            open_dataset(digest)
