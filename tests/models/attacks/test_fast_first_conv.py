"""FastFirstConv computes the right gradient, the same in any batch, and leaves the model unchanged."""

import pytest
import torch
from torch import nn

from models.attacks.core.access import WhiteBox
from models.attacks.core.fast_first_conv import FastFirstConv, with_fast_first_conv

SHAPES = [
    (1, 5, 4, 2, 1, (9, 11)), (3, 4, 3, 1, 1, (8, 6)), (3, 6, (3, 5), (2, 1), (0, 2), (10, 7)), (2, 3, 3, 2, 0, (6, 6)),
]  # fmt: skip


def value_and_grad(net, x):
    leaf = x.clone().requires_grad_()
    outputs = net(leaf)
    (found,) = torch.autograd.grad(outputs.square().sum(), leaf)
    return outputs.detach(), found


@pytest.mark.parametrize(("before", "after", "kernel", "stride", "padding", "size"), SHAPES)
def test_fast_layer_keeps_value_bits_and_gradient(before, after, kernel, stride, padding, size):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(before, after, kernel, stride, padding), nn.Tanh()).eval().requires_grad_(False)
        x = torch.rand(5, before, *size)
    fast = with_fast_first_conv(net)
    assert isinstance(fast[0], FastFirstConv)
    (value, gradient), (wanted, truth) = value_and_grad(fast, x), value_and_grad(net, x)
    assert torch.equal(value, wanted)
    assert torch.allclose(gradient, truth, atol=1e-5, rtol=1e-5)


def test_image_gets_the_same_gradient_in_any_batch():
    layer = with_fast_first_conv(nn.Conv2d(3, 6, (3, 5), (2, 1), (0, 2)).eval().requires_grad_(False))
    draws = torch.Generator().manual_seed(0)
    x, above = torch.rand(5, 3, 10, 7, generator=draws), torch.randn(5, 6, 4, 7, generator=draws)

    def pulled(rows):
        leaf = x[rows].requires_grad_()
        return torch.autograd.grad(layer(leaf), leaf, above[rows])[0]

    together = pulled(slice(None))
    assert all(torch.equal(pulled(slice(row, row + 1)), together[row : row + 1]) for row in range(5))
    assert torch.equal(pulled(slice(1, 4)), together[1:4])


def test_many_positions_are_folded_in_parts(monkeypatch):
    monkeypatch.setattr("models.attacks.core.fast_first_conv.AT_ONCE", 500)
    net = nn.Conv2d(1, 4, 3, padding=1).eval().requires_grad_(False)
    x = torch.rand(7, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(value_and_grad(with_fast_first_conv(net), x)[1], value_and_grad(net, x)[1], atol=1e-5)


def test_copy_shares_weights_and_leaves_the_model_unchanged():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval().requires_grad_(False)
    fast = with_fast_first_conv(net)
    assert type(net[0]) is nn.Conv2d
    assert type(fast[2]) is nn.Conv2d
    assert fast[0].layer.weight is net[0].weight
    assert fast[2].weight is net[2].weight


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 4, 3), nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(1, 4, 3, dilation=2), nn.Conv2d(1, 4, 1),
        nn.Conv2d(1, 4, 3, padding="same"), nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
    ],
)  # fmt: skip
def test_unsupported_layers_are_not_replaced(layer):
    net = nn.Sequential(layer).eval().requires_grad_(False)
    assert with_fast_first_conv(net) is net


def test_trainable_layer_is_not_replaced():
    net = nn.Sequential(nn.Conv2d(1, 4, 3))
    assert with_fast_first_conv(net) is net


def test_white_box_uses_fast_layer_without_weight_gradients():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    box = WhiteBox(net)
    leaf, outputs = box.outputs_with_graph(torch.rand(2, 1, 8, 8))
    gradient = box.gradient(leaf, outputs[:, 0])
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None for parameter in net.parameters())
