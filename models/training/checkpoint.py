"""The state of a training as named tensors (networks, optimiser moments) and JSON facts."""

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
    """Copies of optimiser state as `optimiser/<name>/<parameter>/<slot>`: names stay valid if the network grows."""
    copies = {}
    for label, optimiser in optimisers.items():
        for parameter, slots in optimiser.state.items():
            for slot, value in slots.items():
                if value is not None:
                    copies[f"{OPTIMISER}{label}/{names[parameter]}/{slot}"] = torch.as_tensor(value).detach().clone()
    return copies


def restore_moments(optimisers: Mapping[str, Optimizer], module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give each parameter the state stored under its name; new parameters start without state."""
    parameters = dict(module.named_parameters())
    for key, value in tensors.items():
        if not key.startswith(OPTIMISER):
            continue
        label, name, slot = key.removeprefix(OPTIMISER).split("/")
        if label in optimisers and name in parameters and value.shape in (parameters[name].shape, ()):
            defaults = optimisers[label].defaults
            on_device = (
                value.ndim or defaults.get("fused") or defaults.get("capturable")
            )  # else steps count on the host
            state = value.to(parameters[name].device if on_device else "cpu").clone()
            if value.ndim:  # fused kernels need the memory layout of the parameter
                state = torch.empty_like(parameters[name], dtype=value.dtype, requires_grad=False).copy_(value)
            optimisers[label].state[parameters[name]][slot] = state


def networks(module: nn.Module) -> dict[str, Tensor]:
    """Detached copies of parameters and buffers as `network/<name>`."""
    return {NETWORK + name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def restore_networks(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `networks` returned. Raises RuntimeError unless all names and shapes agree."""
    state = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
    module.load_state_dict(state, strict=True)
