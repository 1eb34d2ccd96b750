"""A frozen copy of a model to attack: eval mode, no parameter gradients, batch norm folded into linear layers."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

LINEAR = (nn.Conv1d, nn.Conv2d, nn.Linear)


def frozen_copy(module: nn.Module) -> nn.Module:
    """The module itself if it is in eval mode and has no trainable parameters, else a copy that is."""
    still = not any(part.training for part in module.modules())
    if still and not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).eval().requires_grad_(False)


def with_folded_batch_norm(
    module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], shape: tuple[int, int, int] | None
) -> nn.Module:
    """`frozen_copy(module)` with batch norm folded, if outputs for a probe of `shape` (C, H, W) stay within 1e-4."""
    plain = frozen_copy(module)
    if shape is None or not any(isinstance(part, _BatchNorm) for part in module.modules()):
        return plain
    device = next(plain.parameters()).device
    probe = torch.linspace(0, 1, 2 * shape[0] * shape[1] * shape[2], device=device).view(2, *shape)
    merged = copy.deepcopy(plain)
    with torch.no_grad():
        before = call(plain, probe)
        for layer, norm in _pairs(merged, call, probe):
            _merge(merged, layer, norm)
        after = call(merged, probe)
    scale = before.abs().amax().clamp_min(1)
    return merged if bool((before - after).abs().amax() <= 1e-4 * scale) else plain


def _pairs(
    module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], probe: Tensor
) -> list[tuple[nn.Module, nn.Module]]:
    """Each linear layer with the batch norm that follows it directly, found by hooks during a forward pass."""
    sources: dict[int, nn.Module] = {}
    outputs, pairs, calls = [], [], {}

    def watch(part: nn.Module, inputs: tuple, output: Tensor) -> None:
        calls[part] = calls.get(part, 0) + 1
        if isinstance(part, LINEAR):
            sources[id(output)] = part
            outputs.append(output)  # kept alive, so that ids stay unique
        elif id(inputs[0]) in sources:
            pairs.append((sources[id(inputs[0])], part))

    parts = [part for part in module.modules() if isinstance(part, (*LINEAR, _BatchNorm))]
    handles = [part.register_forward_hook(watch) for part in parts]
    call(module, probe)
    for handle in handles:
        handle.remove()
    return [(layer, norm) for layer, norm in pairs if calls[layer] == calls[norm] == 1 and norm.running_var is not None]


def _merge(module: nn.Module, layer: nn.Module, norm: nn.Module) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
    for parent in module.modules():
        for name, child in parent.named_children():
            if child is norm:
                setattr(parent, name, nn.Identity())
