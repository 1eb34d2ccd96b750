"""Model outputs as logits, and the forward pass of the clean images, made once and reused."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.access import Access


def look_like_probabilities(outputs: Tensor) -> Tensor:
    """(N,): rows of the outputs (N, K) that are nonnegative and sum to 1, as after a softmax."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)
    positive = (outputs >= 0).all(1)
    # logits usually have negative entries, and then no sum is needed
    return positive & ((outputs.sum(1) - 1).abs() < 1e-4) if bool(positive.any()) else positive


def logarithm(outputs: Tensor, rows: Tensor) -> Tensor:
    """The outputs, with the logarithm in `rows` (N,): logits with the same probabilities."""
    return torch.where(rows[:, None], outputs.clamp_min(1e-38).log(), outputs)


def as_logits(outputs: Tensor) -> Tensor:
    """The outputs, with the logarithm in rows that look like probabilities."""
    rows = look_like_probabilities(outputs)
    return logarithm(outputs, rows) if bool(rows.any()) else outputs


@dataclass
class Clean:
    """The forward pass of the clean images, made once; its graph and gradient are reused by later runs."""

    logits: Tensor
    leaf: Tensor | None = None
    graph: Tensor | None = None
    gradient: Tensor | None = None

    @classmethod
    def of(cls, access: Access, x: Tensor) -> "Clean":
        """One forward pass of `x`, with a graph if the access gives gradients."""
        if access.level < 2:
            return cls(access.outputs(x))
        leaf, graph = access.outputs_with_graph(x)
        return cls(graph.detach(), leaf, graph)
