"""Substitutes: networks trained on a classifier's labels and attacked in its place (Papernot et al. 2017)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

WIDTHS, KERNELS = (32, 24, 48), (3, 5, 3)
"""Channels and kernel sizes of the first convolution of the substitutes, in turn."""


class SubstituteEnsemble(nn.Module):
    """Substitutes of different architecture; `forward` gives their mean logits, which are attacked (Liu et al. 2017).

    Each substitute costs training time (one of width 48 twice as much as the first) and no query. Measured on 1,600
    labels of digits: examples from three change .805 of the victim's answers, from one .76. Smoothed labels raise the
    agreement with the victim to .91 but change fewer answers (.745).
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, count: int):
        super().__init__()
        architectures = [(WIDTHS[place % len(WIDTHS)], KERNELS[place % len(KERNELS)]) for place in range(count)]
        self.members = nn.ModuleList(substitute_network(shape, classes, *each) for each in architectures)

    def member_logits(self, x: Tensor) -> Tensor:
        """(members, N, classes): the logits of each substitute."""
        return torch.stack([member(x) for member in self.members])

    def forward(self, x: Tensor) -> Tensor:
        return self.member_logits(x).mean(0)


def substitute_network(shape: tuple[int, int, int], classes: int, width: int = 32, kernel: int = 3) -> nn.Sequential:
    """Two convolutions and two linear layers; images larger than 32 pixels are pooled to 32 first."""
    channels, rows, columns = shape
    pools = [nn.MaxPool2d(2) for _ in range(2) if min(rows, columns) >= 8]
    body = [nn.AdaptiveAvgPool2d((min(rows, 32), min(columns, 32)))] if max(rows, columns) > 32 else []
    body += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU(), *pools[:1]]
    body += [nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), *pools[1:], nn.Flatten()]
    with torch.no_grad():
        features = nn.Sequential(*body)(torch.zeros(1, *shape)).shape[1]
    return nn.Sequential(*body, nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, classes))


def train_substitutes(net: SubstituteEnsemble, x: Tensor, y: Tensor, epochs: int, seed: int) -> Iterator[int]:
    """Trains each substitute on the victim's labels `y` (N,) with Adam; yields the number of epochs done."""
    optimiser, draws = torch.optim.Adam(net.parameters(), lr=1e-3), torch.Generator().manual_seed(seed % 2**63)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x), generator=draws).split(32):
            with torch.enable_grad():
                labels = y[rows].repeat(len(net.members))
                logits = net.member_logits(x[rows]).flatten(0, 1)
                loss = nn.functional.cross_entropy(logits, labels) * len(net.members)
                optimiser.zero_grad()
                loss.backward()
            optimiser.step()
        yield epoch + 1
