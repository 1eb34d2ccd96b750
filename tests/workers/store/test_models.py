"""Published models: what is said of one that this release cannot build any more."""

import pytest
import torch
from torch import nn

from app.core.errors import Conflict
from models.families.autoencoders.autoencoder import Autoencoder
from models.types import DataSpec
from workers.store import models as artifacts

pytestmark = pytest.mark.usefixtures("storage")
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
