"""U-Net and ResNet generators and the PatchGAN discriminator, for any image size.

Layers as in Isola et al. 2017 (pix2pix) and Zhu et al. 2017 (CycleGAN), but with InstanceNorm instead of BatchNorm, so
that a network serves as it trains, and resize-convolutions instead of transposed ones (no checkerboard artefacts).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.families.translation.instance_norm import InstanceNorm


def initialise(network: nn.Module, gain: float = 0.02) -> nn.Module:
    """Convolution weights ~ N(0, gain^2), biases zero, as in both papers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0.0, gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


SKIP_GAIN = 10.0
"""Factor on that map, whose weights change by the learning rate an update: to reach those of a copy, about 2 before the
tanh, would take thousands of updates."""


class FixedDropout(nn.Module):
    """Dropout that stays on when serving (the noise z of pix2pix), with one fixed mask: answers are reproducible."""

    def __init__(self, share: float = 0.5):
        super().__init__()
        self.share = share

    def forward(self, features: Tensor) -> Tensor:
        if self.training:
            return F.dropout(features, self.share)
        draws = torch.Generator().manual_seed(features.shape[1])
        mask = torch.rand(1, *features.shape[1:], generator=draws) >= self.share
        return features * mask.to(features.device) / (1 - self.share)


class PaddedGenerator(nn.Module):
    """Runs `network` on images padded by reflection to a multiple of `multiple`, and crops its output back.

    (B, C, H, W) in [0, 1] -> (B, C', H, W) in [0, 1]; the network works in [-1, 1]. A residual generator adds the
    network's output to its input, so its output may leave [0, 1].
    """

    def __init__(self, network: nn.Module, multiple: int):
        super().__init__()
        self.network, self.multiple, self.adds = network, multiple, False
        self.register_buffer("added", torch.tensor(False))  # `adds`, stored with the weights

    def make_residual(self) -> None:
        """Output = input + network(input) from now on; the last layer is set to zero, so training starts at a copy."""
        self.adds = True
        self.added.fill_(True)
        *_, last = (layer for layer in self.network.modules() if isinstance(layer, nn.Conv2d))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *about) -> None:
        # weights stored before the buffer existed are of generators that produce the whole image
        self.adds = bool(state.setdefault(f"{prefix}added", torch.tensor(False)))
        super()._load_from_state_dict(state, prefix, *about)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        output = self.network(self.padded(images))[..., :height, :width]
        return images + output / 2 if self.adds else (output.tanh() + 1) / 2

    def padded(self, images: Tensor) -> Tensor:
        """The network's input: in [-1, 1], padded to the right and below."""
        height, width = images.shape[-2:]
        bottom, right = -height % self.multiple, -width % self.multiple
        mode = "reflect" if bottom < height and right < width else "replicate"
        return F.pad(images * 2 - 1, (0, right, 0, bottom), mode=mode)


def _down(before: int, after: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.LeakyReLU(0.2), nn.Conv2d(before, after, 4, 2, 1)]
    return nn.Sequential(*layers, InstanceNorm(after)) if norm else nn.Sequential(*layers)


def _up(before: int, after: int, dropout: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1)]
    layers.append(InstanceNorm(after))
    return nn.Sequential(*layers, FixedDropout()) if dropout else nn.Sequential(*layers)


class UNet(nn.Module):
    """Strided convolutions down, resize-convolutions up, skip connections by concatenation (Isola et al. 2017).

    `levels` halvings: height and width must be multiples of 2**levels. `dropout`: in the three inner up blocks.
    `skip`: adds a linear map of the channels of each pixel to the output, which keeps lines sharp.
    """

    def __init__(self, before: int, after: int, width: int, levels: int, dropout: bool = False, skip: bool = False):
        super().__init__()
        self.direct = nn.Parameter(torch.zeros(after, before)) if skip else None
        widths = [width * min(8, 2**level) for level in range(levels)]
        self.first = nn.Conv2d(before, width, 4, 2, 1)
        # the innermost grid may be one pixel, where an instance norm would erase everything
        inner = range(1, levels)
        self.downs = nn.ModuleList(_down(widths[i - 1], widths[i], norm=i < levels - 1) for i in inner)
        self.ups = nn.ModuleList(
            _up(widths[i] * (1 if i == levels - 1 else 2), widths[i - 1], dropout and levels - 1 - i < 3)
            for i in reversed(inner)
        )
        last = width * (2 if levels > 1 else 1)
        self.last = nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(last, after, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        levels = [self.first(images)]
        for down in self.downs:
            levels.append(down(levels[-1]))
        features = levels.pop()
        for up in self.ups:
            features = torch.cat([up(features), levels.pop()], 1)
        output = self.last(features)
        if self.direct is None:
            return output
        return output + SKIP_GAIN * F.conv2d(images, self.direct[:, :, None, None])


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3 with reflected borders."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1, padding_mode="reflect"),
            InstanceNorm(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, padding_mode="reflect"),
            InstanceNorm(width),
        )

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layers(features)


class ResNet(nn.Module):
    """7x7, two halvings, residual blocks, two doublings, 7x7 (Johnson et al. 2016, as in CycleGAN). Multiples of 4."""

    def __init__(self, before: int, after: int, width: int, blocks: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(before, width, 7, 1, 3, padding_mode="reflect")]
        layers += [InstanceNorm(width), nn.ReLU()]
        for thin, wide in ((width, 2 * width), (2 * width, 4 * width)):
            layers += [nn.Conv2d(thin, wide, 3, 2, 1), InstanceNorm(wide), nn.ReLU()]
        layers += [ResidualBlock(4 * width) for _ in range(blocks)]
        for wide, thin in ((4 * width, 2 * width), (2 * width, width)):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(wide, thin, 3, 1, 1), InstanceNorm(thin), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, after, 7, 1, 3, padding_mode="reflect"))
        self.taps = (2, 5, 8, 8 + (blocks + 1) // 2)  # layers: each of the three resolutions, middle of the blocks

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    def features(self, images: Tensor) -> list[Tensor]:
        """The image itself and the feature map at each tap: the inputs of the PatchNCE loss."""
        maps = [images]
        for index, layer in enumerate(self.layers[: self.taps[-1] + 1]):
            images = layer(images)
            if index in self.taps:
                maps.append(images)
        return maps


class PatchGAN(nn.Module):
    """One logit per overlapping patch: 16, 34 or 70 pixels wide with 1, 2 or 3 strided layers (Isola et al. 2017)."""

    def __init__(self, channels: int, width: int, layers: int):
        super().__init__()
        widths = [width * min(8, 2**layer) for layer in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for layer, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if layer < layers else 1
            stack += [nn.Conv2d(before, after, 4, stride, 1), nn.InstanceNorm2d(after), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> (b, 1, rows, columns) logits."""
        return self.layers(images * 2 - 1)


def default_patch_layers(height: int, width: int) -> int:
    """Strided layers of a PatchGAN by the smaller side in pixels: 3 from 128, 2 from 48, else 1."""
    smallest = min(height, width)
    return 3 if smallest >= 128 else 2 if smallest >= 48 else 1


def make_generator(
    kind: str, before: int, after: int, size: tuple[int, int], width: int, dropout: bool = False, skip: bool = False
) -> PaddedGenerator:
    """A generator, `unet` or `resnet` (4, 6 or 9 blocks), as deep as suits `size`; it takes images of any size."""
    if kind == "unet":
        levels = max(2, min(8, min(size).bit_length() - 1))
        return PaddedGenerator(initialise(UNet(before, after, width, levels, dropout, skip)), 2**levels)
    blocks = 4 if min(size) < 48 else 6 if min(size) <= 128 else 9
    return PaddedGenerator(initialise(ResNet(before, after, width, blocks)), 4)
