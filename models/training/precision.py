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

from models.family import Family

COMPILER = "inductor"
_full_precision = False


def prepare(family: Family) -> None:
    """Before the first update: the layout, kernels, precision and compilation that config and device ask for."""
    config = family.config
    if family.accelerated:
        family.to(memory_format=family.layout)
        use_cuda_kernels(config.deterministic)
    bf16, compiled = config.precision == "bf16", config.compile and family.accelerated
    for module, name in family.forward_passes() if bf16 or compiled else ():
        plain = getattr(type(module), name)
        forward = partial(_forward, plain, _compiled(plain) if compiled else plain, bf16)
        setattr(module, name, MethodType(forward, module))  # bound, so that a deep copy calls the copy


def release(family: Family) -> None:
    """After the last update: every pass is float32 and not compiled again."""
    for module, name in family.forward_passes():
        module.__dict__.pop(name, None)


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
