"""A small frozen network, trained on the dataset itself, whose features measure generated images.

It learns to predict the content of an image (its class or, without labels, its orientation) and its damage (blur or
noise): the features of a classifier alone hardly react to blur. It depends on the dataset only, so the numbers of two
models of a dataset can be compared; they cannot be compared across datasets or with Inception features.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.data import Columns
from models.nn.encoders import pyramid, stage_widths
from models.nn.fit import fit_small
from models.seeds import derive, generator

WIDTH, FEATURES, BATCH = 24, 64, 64
DAMAGES = 5
MAX_TRAINED = 25_600  # images of its training: some ten seconds of one core at 28x28
MAX_EPOCHS = 20
MAX_SIDE = 64  # larger images are scaled down


class FeatureNet(nn.Module):
    """Strided convolutions and one linear layer to 64 features, with linear heads for content and damage."""

    def __init__(self, shape: tuple[int, int, int], contents: int):
        super().__init__()
        channels, height, width = shape
        scale = min(1.0, MAX_SIDE / max(height, width))
        self.size = max(1, round(height * scale)), max(1, round(width * scale))
        sizes = pyramid(*self.size)
        widths = [channels, *stage_widths(sizes, WIDTH)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(4, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(FEATURES), nn.SiLU())
        self.content, self.damage = nn.Linear(FEATURES, contents), nn.Linear(FEATURES, DAMAGES)
        self.body(torch.zeros(1, channels, *self.size))

    def features(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> (b, 64)."""
        if images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
        return self.body(images * 2 - 1)

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> (b, k): logits of the content."""
        return self.content(self.features(images))


def blurred(images: Tensor) -> Tensor:
    """Means over 3x3 neighbourhoods."""
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)


def damaged(images: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image unchanged (5 of 9), blurred once or twice, or with noise of two strengths; and which of them (b,)."""
    once = blurred(images)
    noise = torch.randn(images.shape, generator=draws).to(images)
    ways = [images, once, blurred(once), images + 0.05 * noise, images + 0.2 * noise]
    return _choose(ways[:1] * 4 + ways, draws, repeated=4)


def reoriented(images: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image unchanged, flipped along one axis or both, a square one also transposed; and which of them (b,)."""
    ways = [images, images.flip(3), images.flip(2), images.flip(2, 3)]
    return _choose(ways + [way.mT for way in ways] * (images.shape[2] == images.shape[3]), draws)


def _choose(ways: list[Tensor], draws: torch.Generator, repeated: int = 0) -> tuple[Tensor, Tensor]:
    """A random one of `ways` for each image and its number; the first is repeated `repeated` times."""
    count = len(ways[0])
    which = torch.randint(len(ways), (count,), generator=draws).to(ways[0].device)
    return torch.stack(ways)[which, torch.arange(count, device=which.device)], (which - repeated).clamp_min(0)


def blank_net(columns: Columns, device: torch.device, classes: int | None = None) -> FeatureNet:
    """The untrained network, the same for all datasets of a shape."""
    shape = columns.rows(torch.tensor([0]), ["images"])["images"].shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "features"))
        return FeatureNet(tuple(shape), classes or (8 if shape[1] == shape[2] else 4)).to(device)


def feature_net(columns: Columns, rows: Tensor, device: torch.device, classes: int | None = None) -> FeatureNet:
    """The network trained on `rows` of the columns: on their labels if `classes` is given, else on orientations."""
    net = blank_net(columns, device, classes)
    _train(net, columns, rows, classes is not None)
    return net.eval().requires_grad_(False)


def _train(net: FeatureNet, columns: Columns, rows: Tensor, labelled: bool) -> None:
    """Learns content and damage of `rows`; random shifts by up to two pixels augment the images."""
    device, names = net.content.weight.device, ["images", *(["labels"] if labelled else [])]
    steps = max(1, min(MAX_TRAINED, MAX_EPOCHS * len(rows)) // BATCH)
    draws = generator(0, "feature draws")

    def loss() -> Tensor:
        if columns.cache is not None:
            columns.cache.check_stop()
        batch = columns.rows(rows[torch.randint(len(rows), (min(BATCH, len(rows)),), generator=draws)], names)
        images = batch["images"].to(device)
        images, content = (images, batch["labels"].to(device)) if labelled else reoriented(images, draws)
        images, damage = damaged(images, draws)
        shift = torch.randint(-2, 3, (2,), generator=draws).tolist()
        features = net.features(images.roll(shift, (2, 3)))
        return F.cross_entropy(net.content(features), content) + F.cross_entropy(net.damage(features), damage)

    for _ in fit_small(net.parameters(), loss, steps, 3e-3, weight_decay=0.05):
        pass
