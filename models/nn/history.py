"""A pool of past fakes, shown to a discriminator again (Shrivastava et al. 2017, section 2.3)."""

import torch
from torch import Tensor, nn


class HistoryPool(nn.Module):
    """Holds up to `capacity` images in buffers, so a checkpoint carries it; published models do not."""

    training_only = True

    def __init__(self, capacity: int, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, fresh: Tensor, draws: torch.Generator) -> Tensor:
        """A batch like `fresh` (b, c, h, w) in which about half the rows are swapped against rows of the pool.

        While the pool is filling, fresh rows are stored and returned as they are.
        """
        out = fresh.clone()
        room = min(len(self.images) - int(self.filled), len(fresh))
        if room:
            start = int(self.filled)
            self.images[start : start + room] = fresh[:room]
            self.filled += room
        old = torch.arange(room, len(fresh), device=fresh.device)
        old = old[torch.rand(len(old), generator=draws, device=fresh.device) < 0.5]
        if len(old):
            slots = torch.randperm(len(self.images), generator=draws, device=fresh.device)[: len(old)]
            old = old[: len(slots)]
            out[old] = self.images[slots]
            self.images[slots] = fresh[old]
        return out
