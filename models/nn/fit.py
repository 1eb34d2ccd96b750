"""The training loop of small auxiliary networks: AdamW under one cycle of the learning rate."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR


def fit_small(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], Tensor],
    updates: int,
    rate: float,
    weight_decay: float = 0.0,
    total_steps: int | None = None,
) -> Iterator[int]:
    """Minimises `loss()` in `updates` steps; yields the number of steps made, 1 to `updates`.

    AdamW (Loshchilov & Hutter 2019), the learning rate in one cycle with the maximum `rate` (Smith & Topin 2018), which
    also sets beta1. `loss` draws its own mini-batch. The cycle has `total_steps` steps, by default `updates` + 1.
    """
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=weight_decay)
    schedule = OneCycleLR(optimiser, rate, total_steps=total_steps or updates + 1)
    for step in range(1, updates + 1):
        with torch.enable_grad():
            value = loss()
            optimiser.zero_grad()
            value.backward()
        optimiser.step()
        schedule.step()
        yield step
