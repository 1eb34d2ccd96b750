"""Random numbers of each image: a pure function of its seed, a purpose and a position.

Counter-based (splitmix64) integer arithmetic: a row gets the same bits alone, in any batch, in any order and on any
device. No global generator is used.
"""

import hashlib

import torch
from torch import Tensor

GOLDEN, MIX1, MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64, as signed words


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift right of signed 64-bit words."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * MIX1
    z = (z ^ _shift(z, 27)) * MIX2
    return z ^ _shift(z, 31)


def _word(purpose: tuple[object, ...]) -> int:
    digest = hashlib.sha256(":".join(str(part) for part in purpose).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class RowRNG:
    """Random numbers for rows with seeds (N,) int64. A purpose names each draw, such as ("start", restart)."""

    def __init__(self, seeds: Tensor):
        self.seeds = seeds

    def words(self, shape: tuple[int, ...], *purpose: object) -> Tensor:
        """(N, *shape) uniform 64-bit words."""
        count = 1
        for side in shape:
            count *= side
        keys = _mix(_mix(self.seeds + GOLDEN) ^ _word(purpose))
        counter = torch.arange(1, count + 1, device=self.seeds.device) * GOLDEN
        return _mix(keys[:, None] + counter).view(-1, *shape)

    def uniform(self, shape: tuple[int, ...], *purpose: object) -> Tensor:
        """(N, *shape) float32 in the open interval (0, 1)."""
        return (_shift(self.words(shape, *purpose), 41).float() + 0.5) * 2.0**-23

    def normal(self, shape: tuple[int, ...], *purpose: object) -> Tensor:
        """(N, *shape) standard normal float32."""
        return torch.special.ndtri(self.uniform(shape, *purpose))

    def signs(self, shape: tuple[int, ...], *purpose: object) -> Tensor:
        """(N, *shape) of -1 and +1."""
        return 1.0 - 2.0 * (self.words(shape, *purpose) < 0)

    def integers(self, high: Tensor | int, shape: tuple[int, ...], *purpose: object) -> Tensor:
        """(N, *shape) int64 in [0, high); `high` broadcasts."""
        return _shift(self.words(shape, *purpose), 32) * high >> 32
