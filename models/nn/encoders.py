"""Encoders and decoders for images of any size: linear, MLP and convolutional.

None uses batch statistics, so the result for a row never depends on the rest of the batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]
SMALLEST = 4
FILM_DEVIATION = 0.3
"""Standard deviation of FiLM's scales and shifts before training: the classes differ from the first update on."""


def pyramid(height: int, width: int, smallest: int = SMALLEST) -> list[Size]:
    """Grid sizes from the image down: each stage halves (rounding up) every side longer than `smallest`.

    28x28 -> [(28, 28), (14, 14), (7, 7), (4, 4)]; the last stages of an elongated image halve its longer side only.
    """
    sizes = [(height, width)]
    while max(sizes[-1]) > smallest:
        sizes.append(tuple(-(-side // 2) if side > smallest else side for side in sizes[-1]))
    return sizes


def stage_widths(sizes: Sequence[Size], width: int, most: int = 4) -> list[int]:
    """Channels of each stage: doubled from stage to stage, at most `most` times `width`."""
    return [width * min(most, 2**index) for index in range(len(sizes) - 1)]


def default_body(shape: tuple[int, int, int]) -> str:
    """`conv` if both sides have at least 12 pixels, else `mlp`."""
    return "conv" if min(shape[1:]) >= 12 else "mlp"


def stack(*widths: int) -> nn.Sequential:
    """Linear layers of the given widths with SiLU between them, none at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Rescale(nn.Module):
    """Maps pixels from [0, 1] to [-1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - 0.5) * 2


@dataclass(frozen=True)
class Stage:
    """A layer of a decoder without its activation, and the number of channels of its output."""

    compute: Callable[[Tensor], Tensor]
    channels: int

    def __call__(self, features: Tensor) -> Tensor:
        return self.compute(features)


class MeanCentred(nn.Module):
    """An encoder applied to images minus their `mean` (c, h, w), a buffer of zeros until the family fills it in."""

    def __init__(self, body: nn.Module, shape: tuple[int, int, int]):
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.zeros(shape))

    @property
    def last(self) -> nn.Linear:
        return self.body.last

    def features(self, images: Tensor) -> Tensor:
        """(b, f): the input of the last layer."""
        return self.body.features(images - self.mean)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images - self.mean)


class MLPEncoder(nn.Module):
    """(b, c, h, w) -> (b, out) through linear layers with SiLU between them; linear without hidden layers."""

    def __init__(self, shape: tuple[int, int, int], out: int, hidden: Sequence[int] = ()):
        super().__init__()
        self.layers = stack(math.prod(shape), *hidden, out)

    @property
    def last(self) -> nn.Linear:
        """The layer that gives the code."""
        return self.layers[-1]

    def features(self, images: Tensor) -> Tensor:
        """(b, f): the input of the last layer."""
        return self.layers[:-1](images.flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images))


class MLPDecoder(nn.Module):
    """(b, d) -> (b, c, h, w) through linear layers with SiLU between them."""

    def __init__(self, latent_dim: int, shape: tuple[int, int, int], hidden: Sequence[int] = ()):
        super().__init__()
        self.shape = shape
        self.layers = stack(latent_dim, *hidden, math.prod(shape))

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(latents).unflatten(1, self.shape)

    def stages(self) -> Iterator[Stage]:
        """The layers without the activations between them, so that a caller can modulate their outputs (FiLM)."""
        *inner, last = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        yield from (Stage(layer, layer.out_features) for layer in inner)
        yield Stage(lambda features: last(features).unflatten(1, self.shape), self.shape[0])


class ConvEncoder(nn.Module):
    """Strided 3x3 convolutions down to about 4x4, then one linear layer to the code."""

    def __init__(self, shape: tuple[int, int, int], out: int, width: int = 32):
        super().__init__()
        sizes = pyramid(*shape[1:])
        widths = [shape[0], *stage_widths(sizes, width)]
        layers: list[nn.Module] = [Rescale()]
        for (before, after), (big, small) in zip(pairwise(widths), pairwise(sizes), strict=True):
            strides = tuple(2 if b != s else 1 for b, s in zip(big, small, strict=True))
            layers += [nn.Conv2d(before, after, 3, strides, 1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.last = nn.Linear(widths[-1] * math.prod(sizes[-1]), out)

    def features(self, images: Tensor) -> Tensor:
        """(b, f): the input of the last layer."""
        return self.layers(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.features(images))


class Upsample(nn.Module):
    """3x3 convolution on the small grid, then a pixel shuffle to the larger one (Shi et al. 2016), cropped to `big`."""

    def __init__(self, before: int, after: int, small: Size, big: Size):
        super().__init__()
        self.after = after
        self.big, self.factors = big, tuple(2 if b != s else 1 for b, s in zip(big, small, strict=True))
        self.conv = nn.Conv2d(before, after * math.prod(self.factors), 3, 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = self.factors
        maps = self.conv(features)
        maps = maps.unflatten(1, (-1, rows, columns))  # (b, c, r, s, h, w)
        maps = maps.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)  # (b, c, h*r, w*s)
        return maps[:, :, : self.big[0], : self.big[1]]


class ConvDecoder(nn.Module):
    """The mirror of ConvEncoder: a linear layer to the smallest grid, then one Upsample per stage."""

    def __init__(self, latent_dim: int, shape: tuple[int, int, int], width: int = 32):
        super().__init__()
        sizes = pyramid(*shape[1:])
        widths = [shape[0], *stage_widths(sizes, width)]
        self.grid = widths[-1], *sizes[-1]
        self.spread = nn.Sequential(nn.Linear(latent_dim, math.prod(self.grid)), nn.SiLU())
        layers: list[nn.Module] = []
        for index in range(len(sizes) - 1, 0, -1):
            layers += [Upsample(widths[index], widths[index - 1], sizes[index], sizes[index - 1]), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, latents: Tensor) -> Tensor:
        return self.layers(self.spread(latents).unflatten(1, self.grid))

    def stages(self) -> Iterator[Stage]:
        """The layers without the activations between them, so that a caller can modulate their outputs (FiLM)."""
        yield Stage(lambda latents: self.spread[0](latents).unflatten(1, self.grid), self.grid[0])
        yield from (Stage(layer, layer.after) for layer in self.layers if isinstance(layer, Upsample))


class FiLMDecoder(nn.Module):
    """Class-conditional decoder: codes (b, d) and labels (b,) -> (b, c, h, w), with FiLM (Perez et al. 2018).

    The label scales and shifts the channels of every layer but the last: h -> silu(h * (1 + gamma_label) + beta_label).
    """

    def __init__(self, decoder: ConvDecoder | MLPDecoder, classes: int):
        super().__init__()
        self.decoder = decoder
        widths = [stage.channels for stage in decoder.stages()][:-1]
        self.classes = nn.ModuleList(nn.Embedding(classes, 2 * width) for width in widths)
        for table in self.classes:
            nn.init.normal_(table.weight, 0, FILM_DEVIATION)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        *hidden, last = self.decoder.stages()
        features = codes
        for stage, table in zip(hidden, self.classes, strict=True):
            features = stage(features)
            film = table(labels).unflatten(1, (2, -1, *[1] * (features.ndim - 2)))  # (b, 2, channels, 1, 1)
            features = F.silu(features * (1 + film[:, 0]) + film[:, 1])
        return last(features)
