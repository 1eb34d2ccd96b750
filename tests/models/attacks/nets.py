"""Victims of the attack tests: a small CNN trained for seconds on real 8x8 digits."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from models.capabilities import Classifies
from models.family import Family
from models.types import DataSpec

CLASSES = tuple("0123456789")


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits as 8-bit images (N, 1, 8, 8) in [0, 1], in a fixed random order, and their labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ((images * (255 / 16)).round() / 255)[order], torch.tensor(data.target, dtype=torch.int64)[order]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


@cache
def cnn() -> nn.Sequential:
    """About 98 % right on the last 500 digits; frozen."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, (images, labels) = network(), digits()
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(25):
            for rows in torch.randperm(1297).split(64):
                loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return net.eval().requires_grad_(False)


@cache
def victims(count: int = 32) -> tuple[Tensor, Tensor]:
    """Test digits that the CNN gets right, and their labels."""
    images, labels = (part[1297:] for part in digits())
    right = cnn()(images).argmax(1) == labels
    return images[right][:count], labels[right][:count]


class Victim(Classifies, Family):
    """The CNN as a family with classes."""

    name = "victim"

    def __init__(self, net: nn.Module, classes: tuple[str, ...] = CLASSES, shape: tuple[int, int, int] = (1, 8, 8)):
        super().__init__(None, DataSpec("labelled", shape[1], shape[2], shape[0], classes))
        self.net = net

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images)

    def optimisers(self):
        raise NotImplementedError

    def step(self, batch, optimisers, context):
        raise NotImplementedError
