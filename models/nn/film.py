"""A decoder that is told a class at every layer, so that it need not read the class from the code."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import ConvDecoder, FlatDecoder

START = 0.3
"""Spread of the scales and shifts before training: from the first update on the classes look different."""


class Told(nn.Module):
    """Codes (b, d) and labels (b,) -> (b, c, h, w), through a decoder of `models.nn.encoders`.

    Each class scales and shifts what every layer but the last gives (Perez et al. 2018, FiLM).
    """

    def __init__(self, decoder: ConvDecoder | FlatDecoder, classes: int):
        super().__init__()
        self.decoder = decoder
        widths = [stage.channels for stage in decoder.stages()][:-1]
        self.classes = nn.ModuleList(nn.Embedding(classes, 2 * width) for width in widths)
        for table in self.classes:
            nn.init.normal_(table.weight, 0, START)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        *inner, last = self.decoder.stages()
        features = codes
        for stage, table in zip(inner, self.classes, strict=True):
            features = stage(features)
            told = table(labels).unflatten(1, (2, -1, *[1] * (features.ndim - 2)))  # (b, 2, channels, 1, 1)
            features = F.silu(features * (1 + told[:, 0]) + told[:, 1])
        return last(features)
