"""Layers of the GANs against the operations that they equal."""

import pytest
import torch
from torch.nn import functional as F

from models.families.gans import layers
from models.families.gans.layers import (
    BatchNorm,
    ChannelDropout,
    MinibatchStddev,
    PixelNorm,
    double,
    doubling_conv,
    halve,
    halving_conv,
    recalibrate_batch_norm,
)


@pytest.mark.parametrize(
    ("small", "big"), [((4, 4), (8, 8)), ((4, 4), (7, 7)), ((4, 3), (7, 3)), ((4, 5), (4, 9)), ((5, 4), (5, 4))]
)
def test_doubling_conv_equals_upsampling_then_convolving(small, big):
    features = torch.randn(3, 6, *small, dtype=torch.float64)
    kernel = torch.randn(5, 6, 3, 3, dtype=torch.float64)
    # beyond the crop one has repeated pixels and the other zeros, so compare before cropping
    grid = tuple(side * factor for side, factor in zip(small, layers.strides(small, big), strict=True))
    wanted = F.conv2d(double(features, grid), kernel, padding=1)[:, :, : big[0], : big[1]]
    torch.testing.assert_close(doubling_conv(features, kernel, big), wanted)


@pytest.mark.parametrize("factors", [(2, 2), (2, 1), (1, 1)])
def test_halving_conv_equals_convolving_then_downsampling(factors):
    features = torch.randn(3, 6, 8, 4, dtype=torch.float64)
    kernel, bias = torch.randn(5, 6, 3, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    wanted = halve(F.conv2d(features, kernel, bias, padding=1), factors)
    torch.testing.assert_close(halving_conv(features, kernel, factors, bias), wanted)
    assert halving_conv(features[:, :, :7, :3], kernel, factors).shape[2:] == wanted.shape[2:] or factors != (2, 2)


def test_halve_averages_blocks_and_repeats_the_last_odd_row():
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert halve(image)[0, 0].tolist() == [[2.0, 3.5], [6.5, 8.0]]
    assert torch.equal(halve(double(image, (6, 6))), image)


@pytest.mark.parametrize(("small", "big"), [((4, 4), (8, 8)), ((4, 3), (7, 3)), ((4, 5), (4, 9))])
def test_low_passed_doubling_filters_the_sides_that_grow(small, big):
    features = F.pad(torch.randn(3, 6, *small, dtype=torch.float64), (2, 2, 2, 2))  # far from the border
    kernel, factors = torch.randn(5, 6, 3, 3, dtype=torch.float64), layers.strides(small, big)
    size = tuple(side * factor for side, factor in zip(features.shape[2:], factors, strict=True))
    taps = {2: torch.tensor([1.0, 2.0, 1.0]) / 4, 1: torch.tensor([0.0, 1.0, 0.0])}
    smooth = (taps[factors[0]][:, None] * taps[factors[1]]).double().expand(5, 1, 3, 3)
    wanted = F.conv2d(doubling_conv(features, kernel, size), smooth, padding=1, groups=5)
    found = doubling_conv(features, kernel, size, low_pass=True)
    torch.testing.assert_close(found[:, :, 1:-1, 1:-1], wanted[:, :, 1:-1, 1:-1])
    assert doubling_conv(features, kernel, tuple(side - 1 for side in size), low_pass=True).shape[2] == size[0] - 1 or (
        factors != (2, 2)
    )


def test_doubling_with_low_pass_is_the_filter_of_stylegan():
    kernel = F.pad(torch.ones(1, 1, 1, 1), (1, 1, 1, 1))
    taps = doubling_conv(F.pad(torch.ones(1, 1, 1, 1), (2, 2, 2, 2)), kernel, (10, 10), low_pass=True)[0, 0, 3:7, 3:7]
    torch.testing.assert_close(
        taps, torch.tensor([1.0, 3.0, 3.0, 1.0])[:, None] * torch.tensor([1.0, 3.0, 3.0, 1.0]) / 16
    )


def test_pixel_norm_gives_every_pixel_unit_mean_square():
    features = PixelNorm()(7 * torch.randn(2, 16, 3, 3))
    torch.testing.assert_close(features.square().mean(1), torch.ones(2, 3, 3))


def test_batch_norm_takes_gain_and_shift_from_the_condition():
    norm = BatchNorm(4, 3).eval()
    features, labels = torch.randn(3, 4, 2, 2), torch.eye(3)
    torch.testing.assert_close(norm(features, labels), features, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        norm.gain.weight[:, 1] = 2.0  # (channels, condition)
        norm.shift.weight[:, 2] = 5.0
    out = norm(features, labels)
    torch.testing.assert_close(out[1], 3 * features[1], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(out[2], features[2] + 5, atol=1e-3, rtol=1e-4)


def test_minibatch_stddev_by_hand_in_training_and_stored_in_eval_mode():
    layer = MinibatchStddev(group=2)
    features = torch.tensor([0.0, 10.0, 2.0, 10.0])[:, None, None, None].expand(4, 1, 2, 2)
    layer.train()
    out = layer(features)  # rows 0 and 2 are a group, and 1 and 3
    torch.testing.assert_close(out[:, 1, 0, 0], torch.tensor([1.0, 1e-4, 1.0, 1e-4]))
    for _ in range(500):
        layer(features)
    layer.eval()
    served = layer(features)
    torch.testing.assert_close(served[:, 1, 0, 0], torch.full((4,), 0.50005))
    assert torch.equal(served[:1], layer(features[:1]))  # rows are independent


def test_dropout_mask_in_sampling_depends_only_on_the_latents():
    layer, latents = ChannelDropout(64, 0.5, when_sampling=True).eval(), torch.randn(40, 8)
    out = layer(torch.ones(40, 64, 2, 2), latents)
    assert torch.equal(out[3:4], layer(torch.ones(1, 64, 2, 2), latents[3:4]))
    assert out.unique().tolist() == [0.0, 2.0]
    assert 0.45 < (out == 0).double().mean() < 0.55
    assert not torch.equal(out[0], out[1])
    off = ChannelDropout(64, 0.5, when_sampling=False).eval()
    assert torch.equal(off(torch.ones(1, 64), latents[:1]), torch.ones(1, 64))


def test_dropout_mask_in_training_is_random():
    layer, latents = ChannelDropout(64, 0.3, when_sampling=False).train(), torch.zeros(30, 8)
    first, second = layer(torch.ones(30, 64), latents), layer(torch.ones(30, 64), latents)
    assert not torch.equal(first, second)
    assert 0.25 < (first == 0).double().mean() < 0.35 and first.max() == pytest.approx(1 / 0.7)


def test_recalibrated_batch_norm_has_the_mean_over_batches():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1)).eval()
    batches = iter([torch.tensor([0.0, 2.0]), torch.tensor([4.0, 10.0])])
    recalibrate_batch_norm(network, lambda: network(next(batches)[:, None, None, None]), 2)
    assert float(network[0].running_mean) == pytest.approx((1 + 7) / 2)
    assert float(network[0].running_var) == pytest.approx((2 + 18) / 2)
    assert network[0].momentum == 0.1 and not network[0].training
