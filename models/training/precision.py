"""How the updates of a training compute: precision, memory layout, kernels, and whether networks are compiled.

Precision and compilation are of the forward passes in training mode (`Family.forward_passes`). Under `precision: bf16`
these run under autocast and return float32. So losses, penalties, averages, weights and optimiser moments are float32,
and so is all that runs in eval mode: inspections, measurements, attacks, and the model that is served.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from models.family import Config, Family
from models.types import ConfigError

COMPILER = "inductor"
_full_precision = False


def prepare(family: Family) -> None:
    """Before the first update: the layout, kernels, precision and compilation that config and device ask for."""
    config = family.config
    if family.accelerated:
        family.to(memory_format=family.layout)
        use_cuda_kernels(config.deterministic)
    bf16, compiled = config.precision == "bf16", config.compile and family.accelerated
    for module, name in passes(family) if bf16 or compiled else ():
        plain = getattr(type(module), name)
        forward = partial(_forward, plain, _compiled(plain) if compiled else plain, bf16)
        setattr(module, name, MethodType(forward, module))  # bound, so that a deep copy calls the copy


def release(family: Family) -> None:
    """After the last update: every pass is float32 and not compiled again."""
    for module, name in passes(family):
        module.__dict__.pop(name, None)


def passes(family: Family) -> list[tuple[nn.Module, str]]:
    """The forward passes of a family: modules, and the names of the methods."""
    special = family.forward_passes()
    return learned_passes(family) if special is None else list(special)


def learned_passes(family: Family) -> list[tuple[nn.Module, str]]:
    """`forward` of every child that learns; of a child that is a family, what it says."""
    found: list[tuple[nn.Module, str]] = []
    for child in family.children():
        if isinstance(child, Family):
            found += passes(child)
        elif not getattr(child, "training_only", False):
            parts = child.children() if type(child) in (nn.ModuleDict, nn.ModuleList) else [child]
            found += [(part, "forward") for part in parts if any(p.requires_grad for p in part.parameters())]
    return found


def use_cuda_kernels(deterministic: bool) -> None:
    """TF32, and the fastest kernel of each convolution; or only kernels that give the same bits every time."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = not deterministic  # it may choose another kernel in the next attempt
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False


@contextmanager
def full_precision(when: bool = True) -> Iterator[None]:
    """Inside, if `when`, passes are float32 and not compiled: for what is differentiated twice."""
    global _full_precision
    before = _full_precision
    _full_precision = before or when
    try:
        yield
    finally:
        _full_precision = before


@contextmanager
def deterministic_errors(config: Config) -> Iterator[None]:
    """An operation without a deterministic kernel raises ConfigError."""
    try:
        yield
    except RuntimeError as error:
        if not (config.deterministic and "deterministic" in str(error)):
            raise
        raise ConfigError(
            f"deterministic=true cannot be kept here: {str(error).split('. ')[0]}",
            field="config/deterministic",
            remedy="leave deterministic out, or train on a CPU",
        ) from error


def _compiled(plain: Callable) -> Callable:
    torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
    return torch.compile(plain, backend=COMPILER)


def _forward(plain: Callable, fast: Callable, bf16: bool, module: nn.Module, *inputs: Any, **named: Any) -> Any:
    if _full_precision or not module.training or any(map(_differentiated, (*inputs, *named.values()))):
        return plain(module, *inputs, **named)
    with torch.autocast(next(module.parameters()).device.type, torch.bfloat16, enabled=bf16):
        return tree_map_only(Tensor, _to_fp32, fast(module, *inputs, **named))


def _differentiated(value: Any) -> bool:
    """Whether the gradient with respect to this input is asked for, as penalties and attacks do."""
    return isinstance(value, Tensor) and value.requires_grad and value.is_leaf


def _to_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
