"""A training's state as named tensors plus plain JSON facts: networks, buffers, and optimiser moments by name."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NETWORK, OPTIMISER = "network/", "optimiser/"


@dataclass(frozen=True)
class State:
    """`tensors` go into one safetensors file, `facts` into its JSON."""

    tensors: dict[str, Tensor]
    facts: dict


def moments(optimisers: Mapping[str, Optimizer], names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """Copies of optimiser state as `optimiser/<name>/<parameter>/<slot>`: names survive growth, indices would not."""
    found = {}
    for label, optimiser in optimisers.items():
        for parameter, slots in optimiser.state.items():
            for slot, value in slots.items():
                if value is not None:
                    found[f"{OPTIMISER}{label}/{names[parameter]}/{slot}"] = torch.as_tensor(value).detach().clone()
    return found


def restore_moments(optimisers: Mapping[str, Optimizer], module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give each parameter the state stored under its name; parameters that are new start without any."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        if not key.startswith(OPTIMISER):
            continue
        label, name, slot = key.removeprefix(OPTIMISER).split("/")
        if label in optimisers and name in parameters and value.shape in (parameters[name].shape, ()):
            beside = (
                value.ndim or optimisers[label].defaults.get("fused") or optimisers[label].defaults.get("capturable")
            )
            where = parameters[name].device if beside else "cpu"  # other optimisers count their steps on the host
            kept = value.to(where).clone()
            if value.ndim:  # laid out in memory as the parameter is, which fused kernels take for granted
                kept = torch.empty_like(parameters[name], dtype=value.dtype, requires_grad=False).copy_(value)
            optimisers[label].state[parameters[name]][slot] = kept


def networks(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers keyed `network/<name>`, detached copies."""
    return {NETWORK + name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def restore_networks(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `networks` stored; every name must be there and fit."""
    found = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
    module.load_state_dict(found, strict=True)
