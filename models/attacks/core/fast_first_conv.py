"""A faster input gradient on the CPU for convolutions of few input channels, the first layer of most networks.

The library's gradient with respect to one or three channels takes two to five times as long as a matrix product and a
fold. Training never computes the input gradient of a first layer, an attack does in every step.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, fold

MAX_CHANNELS = 3
AT_ONCE = 1 << 24
"""Maximum values in memory between the product and the fold."""


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
        size = len(kernel) * max(flat.shape[2], 1)
        # one product per image, so that its gradient has the same bits in every batch
        parts = [
            fold(torch.bmm(kernel.expand(len(part), -1, -1), part), ctx.size, weight.shape[2:], **ctx.steps)
            for part in flat.split(max(1, AT_ONCE // size))
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts), None, None, None, None)


class FastFirstConv(nn.Module):
    """Returns the same bits as `layer`; its gradient is computed by a matrix product and a fold."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not (x.requires_grad and torch.is_grad_enabled()):
            return layer(x)
        return _FastFirstConvFunction.apply(x, layer.weight, layer.bias, layer.stride, layer.padding)


def is_supported(layer: nn.Module) -> bool:
    """Whether the layer is a frozen, plain convolution of few channels on a CPU."""
    return (
        type(layer) is nn.Conv2d
        and layer.in_channels <= MAX_CHANNELS
        and max(layer.kernel_size) > 1
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and isinstance(layer.padding, tuple)
        and not layer.weight.requires_grad
        and layer.weight.device.type == "cpu"
    )


def with_fast_first_conv(module: nn.Module) -> nn.Module:
    """The frozen module with supported layers replaced: a copy that shares all weights, or itself if there are none."""
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
