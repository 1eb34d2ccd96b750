"""What differs on an accelerator, tested on the CPU: memory layout, compilation, no value read in a step."""

import pytest
import torch

from models.families.gans.conditional_gan import ConditionalGAN
from models.families.gans.gan import GAN
from models.families.gans.progressive_gan import ProgressiveGAN
from models.families.gans.style_gan import StyleGAN
from models.family import Family
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


def small(name: str):
    family, config = FAMILIES[name]
    return build(family, spec(classes=3), penalty_every=2, **config)


@pytest.fixture
def accelerated(monkeypatch):
    monkeypatch.setattr(Family, "accelerated", True)


@pytest.mark.parametrize("name", ["gan", "progressive"])
def test_restored_moments_have_the_layout_of_their_weights(name, accelerated):
    whole = train(small(name)).state()
    part = train(small(name), 5).state()
    resumed = train(small(name), 0)
    resumed.restore(part)
    for optimiser in resumed.optimisers.values():
        for weight, slots in optimiser.state.items():
            assert all(slot.stride() == weight.stride() for slot in slots.values() if slot.ndim)
    found = train(resumed.family, training=resumed).state()
    assert all(torch.equal(found.tensors[key], tensor) for key, tensor in whole.tensors.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_reads_no_value_from_the_device(name, monkeypatch):
    """Reading a value of a tensor would wait for the device."""
    training = train(small(name), 7)  # layers are grown, the pool is full
    training.grow_to(training.images)

    def read(*args):
        raise AssertionError("a value was read")

    for how in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, how, read)
    training.monitor.steps = set()
    training.advance()


def test_an_image_pool_swaps_rows_and_loses_none():
    pool, draws = ImagePool(6, (1, 1, 1)), torch.Generator().manual_seed(0)
    batches = torch.arange(40.0).reshape(10, 4, 1, 1, 1)
    exchanged = [pool.exchange(batch, draws) for batch in batches]
    assert torch.equal(exchanged[0], batches[0]), "the pool is filling"
    rest = torch.cat([*exchanged, pool.images]).flatten().tolist()
    # the rows that filled the pool were returned, too
    assert sorted(rest) == sorted([*range(40), *range(6)])
    swapped = sum(int((out != batch).sum()) for out, batch in zip(exchanged, batches, strict=True))
    assert 8 < swapped < 28


def test_an_image_pool_continues_from_its_state():
    first, draws = ImagePool(6, (1, 1, 1)), torch.Generator().manual_seed(0)
    first.exchange(torch.arange(4.0).reshape(4, 1, 1, 1), draws)
    second = ImagePool(6, (1, 1, 1))
    second.exchange(torch.zeros(4, 1, 1, 1), draws)
    second.load_state_dict(first.state_dict())
    batch = torch.arange(4.0, 8.0).reshape(4, 1, 1, 1)
    found = [pool.exchange(batch, torch.Generator().manual_seed(1)) for pool in (first, second)]
    assert torch.equal(*found) and torch.equal(first.images, second.images)
