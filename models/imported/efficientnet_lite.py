"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze and excitation) with the names of its published weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.capabilities import Classifies
from models.imported.base import Imported, ImportedConfig
from models.types import DataSpec

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip
"""(blocks, kernel width, stride of the first block, expansion, channels)."""
STEM, HEAD = 32, 1280
EPSILON = 1e-3


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: ceil(side / stride) outputs; an odd pixel is added at the end."""

    def forward(self, maps: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride in zip(maps.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(maps, pads) if any(pads) else maps)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON)


class Block(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection; plus the input if the shape stays."""

    def __init__(self, before: int, after: int, width: int, stride: int, expansion: int):
        super().__init__()
        inside = before * expansion
        self.around, self.widens = stride == 1 and before == after, expansion != 1
        if self.widens:
            self._expand_conv, self._bn0 = SameConv(before, inside, 1, bias=False), norm(inside)
        self._depthwise_conv = SameConv(inside, inside, width, stride, groups=inside, bias=False)
        self._bn1 = norm(inside)
        self._project_conv, self._bn2 = SameConv(inside, after, 1, bias=False), norm(after)

    def forward(self, maps: Tensor) -> Tensor:
        inside = F.relu6(self._bn0(self._expand_conv(maps))) if self.widens else maps
        inside = F.relu6(self._bn1(self._depthwise_conv(inside)))
        out = self._bn2(self._project_conv(inside))
        return out + maps if self.around else out


class EfficientNetLite(Imported, Classifies):
    """A classifier for any image size; the published weights were trained at 224x224."""

    name = "efficientnet_lite"
    summary = "EfficientNet-Lite0 for any set of classes."
    Config = ImportedConfig

    def __init__(self, config: ImportedConfig, data: DataSpec):
        super().__init__(config, data)
        self._conv_stem, self._bn0 = SameConv(data.channels, STEM, 3, 2, bias=False), norm(STEM)
        blocks, before = [], STEM
        for count, width, stride, expansion, after in STAGES:
            for index in range(count):
                blocks.append(Block(before, after, width, 1 if index else stride, expansion))
                before = after
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = SameConv(before, HEAD, 1, bias=False), norm(HEAD)
        self._fc = nn.Linear(HEAD, len(data.classes))

    def logits(self, images: Tensor) -> Tensor:
        return self._fc(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Images (b, c, h, w) in [0, 1] -> features (b, 1280), averaged over the positions."""
        maps = F.relu6(self._bn0(self._conv_stem(self.normalised(images))))
        maps = F.relu6(self._bn1(self._conv_head(self._blocks(maps))))
        return torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1)
