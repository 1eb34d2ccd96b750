"""Class-conditional decoder: FiLM (Perez et al. 2018) at every hidden layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.encoders import ConvDecoder, MLPDecoder

INITIAL_DEVIATION = 0.3
"""Standard deviation of scales and shifts before training: the classes differ from the first update on."""


class FiLMDecoder(nn.Module):
    """Codes (b, d) and labels (b,) -> (b, c, h, w), through a decoder of `models.nn.encoders`.

    The label scales and shifts the channels of every layer but the last: h -> silu(h * (1 + gamma_label) + beta_label).
    """

    def __init__(self, decoder: ConvDecoder | MLPDecoder, classes: int):
        super().__init__()
        self.decoder = decoder
        widths = [stage.channels for stage in decoder.stages()][:-1]
        self.classes = nn.ModuleList(nn.Embedding(classes, 2 * width) for width in widths)
        for table in self.classes:
            nn.init.normal_(table.weight, 0, INITIAL_DEVIATION)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        *hidden, last = self.decoder.stages()
        features = codes
        for stage, table in zip(hidden, self.classes, strict=True):
            features = stage(features)
            film = table(labels).unflatten(1, (2, -1, *[1] * (features.ndim - 2)))  # (b, 2, channels, 1, 1)
            features = F.silu(features * (1 + film[:, 0]) + film[:, 1])
        return last(features)
