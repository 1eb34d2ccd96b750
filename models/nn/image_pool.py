"""A pool of past generated images that a discriminator sees again (Shrivastava et al. 2017, section 2.3)."""

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Up to `capacity` images (c, h, w) in buffers, which are in checkpoints but not in published models."""

    training_only = True

    def __init__(self, capacity: int, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None

    @torch.no_grad()
    def exchange(self, fresh: Tensor, draws: torch.Generator) -> Tensor:
        """`fresh` (b, c, h, w) with about half of its rows exchanged for random rows of the pool.

        While the pool is filling, fresh rows are stored and returned unchanged. Does not synchronise with the device
        after the first call, which reads how full the pool is.
        """
        start = int(self.filled) if self._count is None else self._count
        room = min(len(self.images) - start, len(fresh))
        if room:
            self.images[start : start + room] = fresh[:room]
            self.filled += room
        self._count = start + room
        swapped = min(len(fresh) - room, len(self.images))
        if not swapped:
            return fresh.clone()
        slots = torch.randperm(len(self.images), generator=draws, device=fresh.device)[:swapped]
        new, old = fresh[room : room + swapped], self.images[slots]
        exchanged = torch.rand(swapped, generator=draws, device=fresh.device) < 0.5
        exchanged = exchanged.reshape(swapped, *[1] * (fresh.ndim - 1))
        out = fresh.clone()
        out[room : room + swapped] = torch.where(exchanged, old, new)
        self.images[slots] = torch.where(exchanged, new, old)
        return out

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self._count = None
