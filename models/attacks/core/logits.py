"""Outputs of a model read as logits, and the clean images' outputs kept for whoever needs them again."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.access import Access


def look_like_probabilities(outputs: Tensor) -> Tensor:
    """(N,): the rows that a softmax seems to have gone over already."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return torch.zeros(len(outputs), dtype=torch.bool, device=outputs.device)
    positive = (outputs >= 0).all(1)
    # logits have signs as a rule, and then nothing needs to be summed
    return positive & ((outputs.sum(1) - 1).abs() < 1e-4) if bool(positive.any()) else positive


def logarithm(outputs: Tensor, rows: Tensor) -> Tensor:
    """The logarithm of the outputs in `rows` (N,): logits that give the same probabilities."""
    return torch.where(rows[:, None], outputs.clamp_min(1e-38).log(), outputs)


def as_logits(outputs: Tensor) -> Tensor:
    """Outputs, or their logarithm in rows that look like probabilities."""
    rows = look_like_probabilities(outputs)
    return logarithm(outputs, rows) if bool(rows.any()) else outputs


@dataclass
class Clean:
    """The forward pass over the clean images, made once: its graph and gradient serve whoever asks there again."""

    logits: Tensor
    leaf: Tensor | None = None
    graph: Tensor | None = None
    gradient: Tensor | None = None

    @classmethod
    def of(cls, access: Access, x: Tensor) -> "Clean":
        """Asks the model, with a graph where gradients can be seen."""
        if access.level < 2:
            return cls(access.outputs(x))
        leaf, graph = access.outputs_with_graph(x)
        return cls(graph.detach(), leaf, graph)
