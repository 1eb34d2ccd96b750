"""Bounds what one pass of a foreign graph may allocate and compute; a pass is refused before it does either."""

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from models.types import ModelError

OPERATIONS = 2e11
"""Multiplications and additions that one operator may take for one image: some seconds on two cores."""


class TooMuchWork(ModelError):
    """The detail says which operator takes how much."""


class WorkLimit(TorchDispatchMode):
    """Inside, each operator of torch runs on shapes alone first, and not at all if the tensors that were allocated so
    far and its own have more than `memory` bytes, or if it takes more than `operations`."""

    def __init__(self, memory: float, operations: float = OPERATIONS):
        super().__init__()
        self.memory, self.operations, self.bytes = memory, operations, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not any(returned.alias_info for returned in function._schema.returns):  # a view allocates nothing
            self._require(function, args, kwargs)
        return function(*args, **kwargs)

    def _require(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        def on_meta(item: Any) -> Any:
            return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta") \
                if isinstance(item, torch.Tensor) else item  # fmt: skip

        meta_args, meta_kwargs = tree_map(on_meta, (args, kwargs))
        if "device" in meta_kwargs or not any(isinstance(item, torch.Tensor) for item in tree_leaves(args)):
            meta_kwargs["device"] = torch.device("meta")
        try:
            outputs = function(*meta_args, **meta_kwargs)
        except (NotImplementedError, TypeError, RuntimeError):  # reads a value, or would fail anyway
            return
        name = function.overloadpacket.__name__
        tensors = [output for output in tree_leaves(outputs) if isinstance(output, torch.Tensor)]
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.bytes > self.memory:
            raise TooMuchWork(
                f"a pass of one image needs {self.bytes / 2**30:.3g} GiB at the operator {name};"
                f" {self.memory / 2**30:.3g} GiB are allowed"
            )
        operations = operations_of(function, meta_args, meta_kwargs, outputs, tensors)
        if operations > self.operations:
            raise TooMuchWork(
                f"the operator {name} takes {operations:.2g} operations for one image;"
                f" {self.operations:.2g} are allowed"
            )


def operations_of(function: Any, args: tuple, kwargs: dict, outputs: Any, tensors: list[torch.Tensor]) -> float:
    """Multiplications and additions of an operator, from shapes."""
    packet = function.overloadpacket
    if packet in flop_registry:
        return float(flop_registry[packet](*args, **kwargs, out_val=outputs))
    kernel = math.prod(args[1]) if "pool" in packet.__name__ and len(args) > 1 and isinstance(args[1], list) else 1
    return float(sum(tensor.numel() for tensor in tensors)) * kernel
