"""Convolutions of few input channels with a faster gradient: the first layer of nearly every network under attack.

On a CPU the library's gradient with respect to one or three channels takes two to five times as long as one matrix
product and a fold, and it is the first layer alone whose input gradient only an attack asks for.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, fold

FEW = 3
AT_ONCE = 1 << 24
"""Numbers held at once between the product and the fold."""


class _FastFirstConvFunction(torch.autograd.Function):
    """A convolution whose weights are constants."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.steps = tuple(x.shape[2:]), {"stride": stride, "padding": padding}
        return conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        kernel = weight.flatten(1).t()
        flat = gradient.flatten(2)
        held = len(kernel) * max(flat.shape[2], 1)
        # one product per image: the bits of its gradient are then the same in every batch
        parts = [
            fold(torch.bmm(kernel.expand(len(part), -1, -1), part), ctx.size, weight.shape[2:], **ctx.steps)
            for part in flat.split(max(1, AT_ONCE // held))
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts), None, None, None, None)


class FastFirstConv(nn.Module):
    """Answers as `layer` does, to the bit."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not (x.requires_grad and torch.is_grad_enabled()):
            return layer(x)
        return _FastFirstConvFunction.apply(x, layer.weight, layer.bias, layer.stride, layer.padding)


def is_supported(layer: nn.Module) -> bool:
    """Whether the layer is frozen, plain and of few channels, on a CPU."""
    return (
        type(layer) is nn.Conv2d
        and layer.in_channels <= FEW
        and max(layer.kernel_size) > 1
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
        and not layer.weight.requires_grad
        and layer.weight.device.type == "cpu"
    )


def with_fast_first_conv(module: nn.Module) -> nn.Module:
    """A frozen module with such layers replaced: a copy that shares all weights, or itself when there is none."""
    if not any(is_supported(part) for part in module.modules()):
        return module
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    twin = copy.deepcopy(module, shared)
    if is_supported(twin):
        return FastFirstConv(twin)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if is_supported(child):
                setattr(parent, name, FastFirstConv(child))
    return twin
