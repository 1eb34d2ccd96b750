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
    """Optimiser state as `optimiser/<name>/<parameter>/<slot>`: names stay valid if the network grows."""
    found = {}
    for label, optimiser in optimisers.items():
        for parameter, slots in optimiser.state.items():
            for slot, value in slots.items():
                if value is not None:
                    found[f"{OPTIMISER}{label}/{names[parameter]}/{slot}"] = torch.as_tensor(value).detach()
    return found


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


def on_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Copies in the host's memory, and whether all numbers are finite.

    All tensors of one type are copied into one buffer, so that there is one transfer and one wait for the device.
    """
    groups: dict[tuple, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault((tensor.device, tensor.dtype), []).append(name)
    copies, finite = {}, True
    for names in groups.values():
        buffer = torch.cat([tensors[name].reshape(-1) for name in names]).cpu()
        if buffer.is_floating_point() and buffer.numel():
            finite = finite and bool(torch.stack(torch.aminmax(buffer)).isfinite().all())
        parts = buffer.split([tensors[name].numel() for name in names])
        copies |= {name: part.view(tensors[name].shape) for name, part in zip(names, parts, strict=True)}
    return {name: copies[name] for name in tensors}, finite


def networks(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as `network/<name>`; they share memory with the module."""
    return {NETWORK + name: tensor.detach() for name, tensor in module.state_dict().items()}


def restore_networks(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `networks` returned. Raises RuntimeError unless all names and shapes agree."""
    state = {key.removeprefix(NETWORK): value for key, value in tensors.items() if key.startswith(NETWORK)}
    module.load_state_dict(state, strict=True)
