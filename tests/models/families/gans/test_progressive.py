"""Growth: exact at both ends of a fade, keeps optimiser moments, resumes in the middle of a fade."""

import pytest
import torch

from models.families.gans.equalized_lr import EqualizedConv, EqualizedLinear
from models.families.gans.layers import double, halve
from models.families.gans.progressive_gan import ProgressiveGAN
from models.families.gans.progressive_networks import GrowingDiscriminator, GrowingGenerator
from models.training.loop import Training
from models.types import ConfigError
from tests.models.families.gans.tiny import build, columns, spec, train

SIZES, CHANNELS = [(4, 3), (7, 5), (14, 10)], [8, 6, 4]
PHASES = {"images": 48, "fade_images": 8, "stabilise_images": 8}


def grown(kind, level: int):
    torch.manual_seed(0)
    network = kind(16, SIZES, CHANNELS, 3) if kind is GrowingGenerator else kind(SIZES, CHANNELS, 3)
    for _ in range(level):
        network.grow()
    return network.eval()


@pytest.mark.parametrize("level", [1, 2])
def test_a_fading_generator_is_exact_at_alpha_0_and_1(level):
    latents = torch.randn(3, 16)
    small, large, network = (
        grown(GrowingGenerator, level - 1),
        grown(GrowingGenerator, level),
        grown(GrowingGenerator, level),
    )
    network.fade(0.0)
    assert network.fading
    assert torch.equal(network(latents), double(small(latents), SIZES[level]))
    network.fade(1.0)
    assert torch.equal(network(latents), large(latents))
    network.fading = True  # the blend itself is exact, too
    assert torch.equal(network(latents), large(latents))
    network.fade(0.5)
    torch.testing.assert_close(network(latents), (double(small(latents), SIZES[level]) + large(latents)) / 2)


@pytest.mark.parametrize("level", [1, 2])
def test_a_fading_discriminator_is_exact_at_alpha_0_and_1(level):
    images = torch.randn(3, 3, *SIZES[level])
    kind = GrowingDiscriminator
    small, large, network = grown(kind, level - 1), grown(kind, level), grown(kind, level)
    network.fade(0.0)
    assert torch.equal(network(images), small(halve(images)))
    network.fading = True
    network.alpha.fill_(1.0)
    assert torch.equal(network(images), large(images))


def test_real_images_are_blended_like_fakes():
    model = build(ProgressiveGAN, spec(16), **PHASES)
    images = torch.rand(2, 1, 16, 16)
    model.grow_to(0)
    torch.testing.assert_close(model.real_images({"images": images}), halve(halve(images)) * 2 - 1)
    model.grow_to(8)  # the second level begins to fade in: only the size has changed
    small = halve(halve(images)) * 2 - 1
    torch.testing.assert_close(model.real_images({"images": images}), double(small, (8, 8)))
    model.grow_to(12)
    middle = (double(small, (8, 8)) + halve(images) * 2 - 1) / 2
    torch.testing.assert_close(model.real_images({"images": images}), middle)
    model.grow_to(40)
    torch.testing.assert_close(model.real_images({"images": images}), images * 2 - 1)


def test_level_and_alpha_follow_the_count_of_images():
    model = build(ProgressiveGAN, spec(16), **PHASES)
    found = [model.level_and_alpha(images) for images in (0, 4, 8, 12, 16, 20, 24, 28, 32, 44)]
    assert found == [(0, 1), (0, 1), (1, 0), (1, 0.5), (1, 1), (1, 1), (2, 0), (2, 0.5), (2, 1), (2, 1)]
    assert build(ProgressiveGAN, spec(16), images=48, fade_images=0, stabilise_images=0).level_and_alpha(0) == (2, 1.0)


def test_growing_is_idempotent_and_grows_the_average():
    model = build(ProgressiveGAN, spec(16), **PHASES)
    model.grow_to(8)
    names = [name for name, _ in model.named_parameters()]
    model.grow_to(8)
    assert [name for name, _ in model.named_parameters()] == names
    assert model.ema.module.level == model.generator.level == model.discriminator.level == 1
    for own, other in zip(model.ema.module.blocks.parameters(), model.generator.blocks.parameters(), strict=True):
        assert torch.equal(own, other) and not own.requires_grad
    assert model.ema.module.alpha == 0


def test_optimiser_moments_survive_growth():
    model = build(ProgressiveGAN, spec(16), **PHASES)
    training = train(model, 2)  # up to the first growth
    before = {name: slots["exp_avg_sq"].clone() for name, slots in named_moments(training)}
    training.grow_to(8)
    after = dict(named_moments(training))
    assert before and all(torch.equal(after[name]["exp_avg_sq"], value) for name, value in before.items())
    fresh = {
        name for name, _ in model.named_parameters() if name.startswith(("generator.blocks", "discriminator.blocks"))
    }
    assert fresh and not fresh & after.keys()
    held = {
        id(p) for optimiser in training.optimisers.values() for group in optimiser.param_groups for p in group["params"]
    }
    assert {id(p) for name, p in model.named_parameters() if name in fresh} <= held
    training.advance()
    training.advance()
    assert fresh <= dict(named_moments(training)).keys()  # the new ones are trained


def named_moments(training: Training):
    names = {parameter: name for name, parameter in training.family.named_parameters()}
    for optimiser in training.optimisers.values():
        for parameter, slots in optimiser.state.items():
            yield names[parameter], slots


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7])
def test_resuming_at_a_growth_or_in_a_fade_equals_an_unbroken_training(steps):
    data, config = spec(16), PHASES | {"augment": "adaptive"}
    whole = train(build(ProgressiveGAN, data, **config)).state()
    part = train(build(ProgressiveGAN, data, **config), steps).state()
    assert "network/generator.alpha" in part.tensors
    resumed = Training(build(ProgressiveGAN, data, seed=9, **config), columns(data), columns(data, 1), seed=3)
    resumed.restore(part)
    found = train(resumed.family, training=resumed).state()
    assert found.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in whole.tensors.items())


@pytest.mark.parametrize("size", [(28, 28, 1), (9, 33, 3), (8, 8, 3)])
def test_snapshots_and_samples_have_full_size_at_every_level(size):
    model = build(ProgressiveGAN, spec(*size), images=64)
    training = train(model, 1)
    assert model.generator.level == 0 and training.snapshot().shape[2:] == size[:2]
    assert train(model, training=training).finish()
    assert model.eval().decode(torch.randn(2, model.latent_dim)).shape == (2, size[2], *size[:2])
    served = build(ProgressiveGAN, spec(*size), seed=4, images=64).load_for_serving(model.serving_state())
    latents = torch.randn(3, model.latent_dim)
    assert torch.equal(served.decode(latents), model.decode(latents))


def test_too_few_images_to_reach_full_size_are_refused():
    with pytest.raises(ConfigError, match="images is 48, but the full size is reached only after 96"):
        build(ProgressiveGAN, spec(16), images=48, fade_images=24, stabilise_images=24)


def test_init_from_is_refused():
    with pytest.raises(ConfigError, match="init_from is not supported"):
        build(ProgressiveGAN, spec(16), **PHASES).init_from(build(ProgressiveGAN, spec(16), **PHASES))


def test_the_settings_of_the_paper_are_valid():
    config = {"width": 16, "widest": 512, "latent_dim": 512, "batch_size": 16, "images": 12_000_000}
    config["loss"] = "wasserstein"
    data = spec(1024, channels=3, count=70_000)
    found = ProgressiveGAN.resolve_config(
        ProgressiveGAN.Config(**config, fade_images=600_000, stabilise_images=600_000), data
    )
    assert (
        found.loss == "wasserstein"
        and found.gradient_penalty == 10
        and found.drift == 0.001
        and found.critic_steps == 1
    )


def test_equalized_layers_start_at_unit_scale():
    torch.manual_seed(0)
    conv, dense = EqualizedConv(64, 64, gain=1), EqualizedLinear(256, 256, gain=1, lr_multiplier=0.01, bias=1.0)
    assert conv(torch.randn(8, 64, 12, 12))[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.05)
    assert dense(torch.randn(64, 256)).std().item() == pytest.approx(1, abs=0.05)
    assert dense(torch.zeros(1, 256)).mean().item() == pytest.approx(1)
    assert conv.weight.std().item() == pytest.approx(1, abs=0.02) and dense.weight.std().item() == pytest.approx(
        100, rel=0.02
    )
