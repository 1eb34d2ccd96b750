"""Paths that an accelerator takes, walked on the CPU: memory layout, compiled calls, nothing read per step."""

import pytest
import torch

from models.families.gans import base
from models.families.gans.conditional_gan import ConditionalGAN
from models.families.gans.gan import GAN
from models.families.gans.progressive_gan import ProgressiveGAN
from models.families.gans.style_gan import StyleGAN
from models.nn.image_pool import ImagePool
from tests.models.families.gans.tiny import build, spec, train

FAMILIES = {
    "gan": (GAN, {"augment": "adaptive", "replay": 6, "label_flips": 0.1}),
    "dcgan": (GAN, {"body": "dcgan", "separate_batches": False}),
    "fast": (GAN, {"body": "fast", "latent_dim": 8}),
    "conditional": (ConditionalGAN, {"replay": 6, "augment": "diff"}),
    "progressive": (ProgressiveGAN, {"latent_dim": 8, "widest": 8, "fade_images": 8, "stabilise_images": 8}),
    "style": (StyleGAN, {"latent_dim": 8, "widest": 8, "path_length": 1.0, "path_every": 2}),
}


def made(name: str):
    family, config = FAMILIES[name]
    return build(family, spec(classes=3), penalty_every=2, **config)


@pytest.fixture
def accelerated(monkeypatch):
    monkeypatch.setattr(base.GANBase, "accelerated", True)


@pytest.mark.parametrize("name", ["conditional", "progressive", "style"])
def test_channels_last_is_another_layout_of_the_same_training(name, monkeypatch):
    plain = train(made(name)).state().tensors
    monkeypatch.setattr(base.GANBase, "accelerated", True)
    training = train(made(name))
    kernels = [weight for weight in training.family.discriminator.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    found = training.state().tensors
    for key, tensor in plain.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-2, rtol=2e-2, msg=key)


@pytest.mark.parametrize("name", ["gan", "progressive"])
def test_moments_come_back_in_the_layout_of_their_weights(name, accelerated):
    whole = train(made(name)).state()
    part = train(made(name), 5).state()
    resumed = train(made(name), 0)
    resumed.restore(part)
    for optimiser in resumed.optimisers.values():
        for weight, slots in optimiser.state.items():
            assert all(slot.stride() == weight.stride() for slot in slots.values() if slot.ndim)
    found = train(resumed.family, training=resumed).state()
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in whole.tensors.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_players_play_the_same_game_and_penalties_stay_eager(accelerated, monkeypatch):
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    monkeypatch.setattr(base, "COMPILER", backend)
    config = {"images": 16, "augment": "none", "penalty_every": 2, "r1": 1.0}
    plain = train(build(GAN, **config)).state().tensors
    assert not calls
    found = train(build(GAN, compile=True, **config)).state().tensors
    assert calls
    for key, tensor in plain.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-4, rtol=1e-4, msg=key)
    assert train(
        build(StyleGAN, latent_dim=8, widest=8, path_length=1.0, compile=True), 0
    ).family.differentiates_generator_twice


def test_compiling_is_for_accelerators():
    assert train(build(GAN, compile=True), 1).family.generator._compiled_call_impl is None


@pytest.mark.parametrize("name", FAMILIES)
def test_no_number_is_read_in_a_step(name, monkeypatch):
    """Each reading of a tensor's value makes an accelerator wait."""
    training = train(made(name), 7)  # layers are grown, the pool is full
    training.grow_to(training.images)

    def read(*given):
        raise AssertionError("a value was read")

    for how in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, how, read)
    training.monitor.steps = set()
    training.advance()


def test_a_pool_swaps_rows_and_loses_none():
    pool, draws = ImagePool(6, (1, 1, 1)), torch.Generator().manual_seed(0)
    batches = torch.arange(40.0).reshape(10, 4, 1, 1, 1)
    given = [pool.exchange(batch, draws) for batch in batches]
    assert torch.equal(given[0], batches[0]), "the pool is filling"
    rest = torch.cat([*given, pool.images]).flatten().tolist()
    # what filled the pool was given out as well
    assert sorted(rest) == sorted([*range(40), *range(6)])
    swapped = sum(int((out != batch).sum()) for out, batch in zip(given, batches, strict=True))
    assert 8 < swapped < 28


def test_a_pool_goes_on_where_its_state_was_left():
    first, draws = ImagePool(6, (1, 1, 1)), torch.Generator().manual_seed(0)
    first.exchange(torch.arange(4.0).reshape(4, 1, 1, 1), draws)
    second = ImagePool(6, (1, 1, 1))
    second.exchange(torch.zeros(4, 1, 1, 1), draws)
    second.load_state_dict(first.state_dict())
    batch = torch.arange(4.0, 8.0).reshape(4, 1, 1, 1)
    found = [pool.exchange(batch, torch.Generator().manual_seed(1)) for pool in (first, second)]
    assert torch.equal(*found) and torch.equal(first.images, second.images)
