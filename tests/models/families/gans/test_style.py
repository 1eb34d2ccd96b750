"""StyleGAN: modulated convolutions, truncation, mixing, path length penalty, noise."""

import pytest
import torch
from torch.nn import functional as F

from models.context import StepContext
from models.families.gans.style_gan import StyleGAN
from models.families.gans.stylegan2_networks import Mapping, ModulatedConv
from models.operations.interpolate import Interpolate
from models.operations.mix import Mix
from models.operations.samples import Samples
from models.types import InputError
from tests.models.families.gans.tiny import build, spec, train


def ask(operation, model, inputs=None, **params):
    asked = operation.Params(**params)
    rows = operation.rows(model, inputs, asked)
    with torch.no_grad():
        return operation.result(model, rows, operation.compute(model, rows, asked), asked)


def tiny(**config):
    return build(StyleGAN, latent_dim=16, widest=8, **config)


def test_modulated_conv_equals_scaling_the_kernel_of_each_row():
    conv = ModulatedConv(6, 5, 8, (4, 4))
    features, styles = torch.randn(3, 6, 4, 4), torch.randn(3, 8)
    gains, kernel = conv.style(styles), conv.conv.scaled()
    weights = kernel[None] * gains[:, None, :, None, None]  # (b, o, i, k, k)
    weights = weights * (weights.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    rows = [
        F.conv2d(row[None], weight, conv.conv.bias, padding=1) for row, weight in zip(features, weights, strict=True)
    ]
    torch.testing.assert_close(conv(features, styles), torch.cat(rows), atol=1e-5, rtol=1e-4)


def test_demodulated_features_have_unit_scale_for_any_style():
    conv = ModulatedConv(64, 64, 8, (16, 16))
    features = torch.randn(2, 64, 16, 16)
    spread = conv(features, 100 * torch.randn(2, 8))[:, :, 1:-1, 1:-1].std().item()
    assert spread == pytest.approx(1, abs=0.1)


def test_mapping_ignores_the_norm_of_noise_and_learns_slowly():
    mapping, noise = Mapping(16, 3), torch.randn(4, 16)
    torch.testing.assert_close(mapping(noise), mapping(5 * noise), atol=1e-5, rtol=1e-4)
    assert mapping[1].weight.std().item() == pytest.approx(100, rel=0.2) and mapping[1].lr_multiplier == 0.01


def test_truncation_interpolates_from_the_mean_style():
    model = tiny().eval()
    model.ema.module.centre.copy_(torch.randn(16))
    latents = model.draw(torch.randn(3, 16), torch.zeros(3))
    centre = model.ema.module.centre.expand(3, -1)
    half, whole, none = (model.truncate(latents, torch.full((3, 1), share)) for share in (0.5, 1.0, 0.0))
    assert torch.equal(whole, latents) and torch.equal(none, centre)
    torch.testing.assert_close(half, (latents + centre) / 2)


def test_samples_truncate_in_style_space():
    model = tiny().eval()
    model.ema.module.centre.copy_(torch.randn(16))
    full, half = (ask(Samples(), model, n=4, truncation=share) for share in (1.0, 0.5))
    torch.testing.assert_close(half.latents, (full.latents + model.ema.module.centre) / 2)
    torch.testing.assert_close(
        full.latents, model.draw(Samples().rows(model, None, Samples.Params(n=4))["noise"], None)
    )
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="greater than 0"):
            Samples.Params(truncation=wrong)


def test_the_centre_is_the_mean_of_many_styles():
    model = tiny(images=8)
    train(model).finish()
    styles = model.ema.module.mapping(torch.randn(20_000, 16))
    torch.testing.assert_close(model.ema.module.centre, styles.mean(0).detach(), atol=0.1, rtol=0)


def test_mixing_takes_early_layers_from_one_style_and_late_from_other():
    model = tiny().eval()
    network, (first, second) = model.ema.module, torch.randn(2, 5, 16)
    by_layer = network.mixed(first, second, torch.tensor([0, 1, 2, 3, 9]))
    assert network.depth == 3 and by_layer.shape == (5, 3, 16)
    for row, crossing in enumerate((0, 1, 2, 3, 3)):
        wanted = [first[row] if layer < crossing else second[row] for layer in range(3)]
        assert torch.equal(by_layer[row], torch.stack(wanted))
    assert torch.equal(model.mix(first, second, torch.full((5,), 9)), model.decode(first))
    assert torch.equal(model.mix(first, second, torch.zeros(5)), model.decode(second))


def test_mix_of_two_seeds_combines_their_latents():
    model = tiny().eval()
    mixed = ask(Mix(), model, n=3, seed=1, other=2, crossing=2)
    first, second = (ask(Samples(), model, n=3, seed=seed) for seed in (1, 2))
    wanted = model.mix(first.latents, second.latents, torch.full((3,), 2))
    torch.testing.assert_close(mixed.images, wanted)
    assert mixed.facts == {"seed": 1, "other": 2, "crossing": 2}
    torch.testing.assert_close(ask(Mix(), model, n=3, seed=1, other=1).images, first.images)
    with pytest.raises(InputError, match="between 1 and 2"):
        ask(Mix(), model, crossing=3)


def test_styles_are_interpolated_linearly():
    model, ends = tiny().eval(), torch.randn(2, 16)
    way = ask(Interpolate(), model, ends, steps=3).latents
    torch.testing.assert_close(way[1], ends.mean(0))


def test_training_mixes_the_requested_fraction_of_styles():
    context = StepContext(0, 1, 0, 0, torch.Generator().manual_seed(0))
    for share, low, high in ((0.0, 0, 0), (0.9, 150, 195), (1.0, 200, 200)):
        styles = tiny(mixing=share)._styles(200, context)
        crossed = (styles[:, 0] != styles[:, -1]).any(1)
        assert low <= int(crossed.sum()) <= high


def test_path_length_penalty_is_lazy_and_differentiable():
    model = tiny(path_every=2, path_length=2.0)
    training = train(model, 0)
    assert ["generator_penalty" in training.advance().metrics for _ in range(4)] == [False, True, False, True]
    assert model.usual_length > 0
    _, penalty = model.g_penalties(StepContext(0, 1, 1, 0, torch.Generator().manual_seed(0)))["generator_penalty"]
    slopes = torch.autograd.grad(penalty, [model.generator.start, model.generator.mapping[1].weight])
    assert all(slope.abs().sum() > 0 for slope in slopes)
    assert not tiny(path_length=0).g_penalties(StepContext(0, 1, 1, 0, torch.Generator()))


def test_noise_is_random_in_training_and_fixed_in_eval_mode():
    model = tiny()
    latents = torch.randn(1, 16)
    for layer in model.ema.module.layers:
        layer.strength.data.fill_(1.0)
    served = model.decode(latents)
    assert torch.equal(served, model.decode(latents))
    training = model.ema.module.train()
    assert not torch.equal(training(latents), training(latents))
    assert not any("strength" in name for name, _ in tiny(noise=False).named_parameters())


@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_training_equals_an_unbroken_one(steps):
    config = {"path_every": 2, "penalty_every": 2, "path_length": 2.0}
    whole = train(tiny(**config)).state()
    part = train(tiny(**config), steps).state()
    resumed = train(build(StyleGAN, seed=9, latent_dim=16, widest=8, **config), 0)
    resumed.restore(part)
    found = train(resumed.family, training=resumed).state()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in whole.tensors.items())


@pytest.mark.parametrize(("size", "weight"), [(28, 0.0), (128, 2.0)])
def test_path_length_penalty_is_off_for_small_images(size, weight):
    assert StyleGAN.resolve_config(StyleGAN.Config(), spec(size)).path_length == weight
    assert StyleGAN.resolve_config(StyleGAN.Config(path_length=1.0), spec(size)).path_length == 1.0


@pytest.mark.parametrize("size", [(28, 28, 1), (9, 33, 3)])
def test_any_size_is_generated(size):
    model = build(StyleGAN, spec(*size)).eval()
    assert model.decode(torch.randn(2, model.latent_dim)).shape == (2, size[2], *size[:2])
