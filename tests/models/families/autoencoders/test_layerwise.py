"""Training a deep denoising autoencoder layer by layer."""

import pytest
import torch

from models.families.autoencoders.denoising_autoencoder import DenoisingAutoencoder
from models.families.autoencoders.layerwise import layer_at, layer_pairs
from models.training.loop import Training
from models.types import ConfigError
from tests.models.data import dataset

DATA = dataset("plain", (1, 8, 8), 32)
CONFIG = {
    "body": "mlp", "hidden": (24, 16), "latent_dim": 8, "pretraining": 0.5, "noise": "masking", "p": 0.25,
    "images": 192, "batch_size": 16,
}  # fmt: skip


def build() -> Training:
    torch.manual_seed(0)
    return Training(DenoisingAutoencoder.create(CONFIG, DATA[0]), *DATA[1:])


def test_pretraining_is_divided_equally_among_layers():
    found = [layer_at(progress / 12, 0.5, 3) for progress in range(12)]
    assert found == [0, 0, 1, 1, 2, 2] + [None] * 6


def test_pairs_go_from_the_image_up():
    model = build().family
    sizes = [(up.in_features, up.out_features, down.in_features, down.out_features)
             for up, down in layer_pairs(model.encoder, model.decoder)]  # fmt: skip
    assert sizes == [(64, 24, 24, 64), (24, 16, 16, 24), (16, 8, 8, 16)]


def test_each_update_moves_only_the_layer_whose_turn_it_is():
    training = build()
    pairs = layer_pairs(training.family.encoder, training.family.decoder)
    for step in range(12):
        before = [[layer.weight.detach().clone() for layer in pair] for pair in pairs]
        training.advance()
        moved = [
            any(not torch.equal(old, layer.weight) for old, layer in zip(weights, pair, strict=True))
            for weights, pair in zip(before, pairs, strict=True)
        ]
        assert moved == ([index == step // 2 for index in range(3)] if step < 6 else [True] * 3)


@pytest.mark.parametrize("done", [1, 2, 5, 6, 9])
def test_training_resumed_in_any_stage_equals_unbroken_one(done):
    whole = build()
    for _ in range(done):
        whole.advance()
    state = whole.state()
    for _ in whole.run():
        pass
    resumed = build()
    torch.manual_seed(5)
    resumed.restore(state)
    for _ in resumed.run():
        pass
    found, expected = resumed.state().tensors, whole.state().tensors
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("body", ["conv", "unet", "auto"])
def test_a_body_without_a_stack_of_layers_is_refused(body):
    with pytest.raises(ConfigError) as caught:
        DenoisingAutoencoder.create({"body": body, "pretraining": 0.3}, dataset("plain", (1, 16, 16))[0])
    assert caught.value.field == "config/pretraining"
