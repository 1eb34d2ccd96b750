"""A pool of past fakes, shown to a discriminator again (Shrivastava et al. 2017, section 2.3)."""

import torch
from torch import Tensor, nn


class ImagePool(nn.Module):
    """Holds up to `capacity` images in buffers, so a checkpoint carries it; published models do not."""

    training_only = True

    def __init__(self, capacity: int, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("images", torch.zeros(capacity, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None

    @torch.no_grad()
    def exchange(self, fresh: Tensor, draws: torch.Generator) -> Tensor:
        """A batch like `fresh` (b, c, h, w) in which about half the rows are swapped against rows of the pool.

        While the pool is filling, fresh rows are stored and returned as they are. Nothing waits for the device: every
        shape follows from how full the pool is, which is read once.
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
        mine, theirs = fresh[room : room + swapped], self.images[slots]
        chosen = torch.rand(swapped, generator=draws, device=fresh.device) < 0.5
        chosen = chosen.reshape(swapped, *[1] * (fresh.ndim - 1))
        out = fresh.clone()
        out[room : room + swapped] = torch.where(chosen, theirs, mine)
        self.images[slots] = torch.where(chosen, mine, theirs)
        return out

    def _load_from_state_dict(self, *given) -> None:
        super()._load_from_state_dict(*given)
        self._count = None
