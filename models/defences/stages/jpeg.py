"""JPEG compression (Das et al. 2017; Guo et al. 2018) on tensors: the lossy steps of JPEG without the file."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.attacks.core.rng import RowRNG
from models.defences import stage as core
from models.defences.stage import straight_through

# ITU-T T.81, annex K, tables K.1 and K.2
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *[(99,) * 8] * 4,
)  # fmt: skip
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def table(base: tuple, quality: int) -> Tensor:
    """(8, 8) quantisation steps at a quality of 1 to 100, as the reference implementation scales them."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return torch.div(torch.tensor(base) * scale + 50, 100, rounding_mode="floor").clamp(1, 255).float()


def cosines() -> Tensor:
    """(8, 8): the orthonormal discrete cosine transform."""
    n = torch.arange(8, dtype=torch.float64)
    basis = torch.cos(math.pi / 8 * (n[None] + 0.5) * n[:, None]) / 2
    basis[0] /= math.sqrt(2)
    return basis.float()


class Config(core.Config):
    quality: int = Field(75, ge=1, le=100, description="JPEG quality; lower removes more.")


class JPEG(core.Defence):
    """The gradient treats rounding as the identity and is exact elsewhere (Shin & Song 2017)."""

    name = "jpeg"
    summary = "Compresses the image with JPEG."
    differentiable = True
    Config = Config

    def __init__(self, config: Config, model=None):
        super().__init__(config)
        self.register_buffer("basis", cosines(), persistent=False)
        self.register_buffer("luma", table(LUMA, config.quality), persistent=False)
        self.register_buffer("chroma", table(CHROMA, config.quality), persistent=False)
        self.register_buffer("ycc", torch.tensor(TO_YCC), persistent=False)

    def apply_to(self, images: Tensor, rng: RowRNG) -> Tensor:
        levels = images * 255
        if images.shape[1] != 3:
            return self._to_8_bit(self.plane(levels - 128, self.luma) + 128)
        planes = torch.einsum("kc,bchw->bkhw", self.ycc, levels)
        height, width = images.shape[2:]
        small = F.pad(planes[:, 1:], (0, width % 2, 0, height % 2), mode="replicate")
        small = self.plane(F.avg_pool2d(small, 2), self.chroma)
        chroma = small.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, :height, :width]
        planes = torch.cat([self.plane(planes[:, :1] - 128, self.luma) + 128, chroma], 1)
        return self._to_8_bit(torch.einsum("ck,bkhw->bchw", torch.linalg.inv(self.ycc), planes))

    def plane(self, values: Tensor, steps: Tensor) -> Tensor:
        """(b, c, h, w) in blocks of 8x8: DCT, rounding to multiples of `steps` (8, 8), inverse DCT."""
        height, width = values.shape[2:]
        padded = F.pad(values, (0, -width % 8, 0, -height % 8), mode="replicate")
        blocks = padded.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).transpose(3, 4)  # (b, c, H/8, W/8, 8, 8)
        # DCT coefficients in units of the quantisation steps
        coefficients = self.basis @ blocks @ self.basis.T / steps
        blocks = self.basis.T @ (straight_through(coefficients, coefficients.round()) * steps) @ self.basis
        return blocks.transpose(3, 4).flatten(4, 5).flatten(2, 3)[:, :, :height, :width]

    @staticmethod
    def _to_8_bit(levels: Tensor) -> Tensor:
        return (straight_through(levels, levels.round()) / 255).clamp(0, 1)
