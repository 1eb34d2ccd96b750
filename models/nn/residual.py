"""The block that the deeper networks are made of."""

from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation: the statistics are those of the one image, at any batch size."""
    return nn.GroupNorm(max(1, channels // 16), channels)


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, pre-activation (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.branch = nn.Sequential(
            norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1),
            nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1),
        )  # fmt: skip

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.branch(maps)
