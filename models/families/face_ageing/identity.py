"""Who is shown: a network whose features of one person are alike at every age, and what it learns from.

It learns by contrast: two changed views of every image, and all images of one identity, belong together.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.classifiers.base import ClassifierBaseConfig, trunk
from models.nn.augment import shift
from models.nn.resnet import ResNetTrunk
from models.types import DataSpec

FEATURES = 64
LONGEST = 64  # sides beyond this are scaled down
TEMPERATURE = 0.2
NOISE = 0.05


class Sight(nn.Module):
    """A trunk and one linear layer, behind a resize that gradients pass: (b, c, h, w) in [0, 1] -> (b, out)."""

    def __init__(self, shape: tuple[int, int, int], out: int, width: int = 16):
        super().__init__()
        scale = min(1.0, LONGEST / max(shape[1:]))
        self.size = max(1, round(shape[1] * scale)), max(1, round(shape[2] * scale))
        self.trunk = ResNetTrunk((shape[0], *self.size), width)
        self.last = nn.Linear(self.trunk.features, out)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.trunk(resized(images, self.size)))


class TrunkSpec(BaseModel):
    """The body of a classifier that tells identities apart, and the images it reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1, le=256)
    width: int = Field(ge=1, le=256)
    config: ClassifierBaseConfig

    @classmethod
    def of(cls, config: ClassifierBaseConfig, data: DataSpec) -> "TrunkSpec":
        fields = {name: getattr(config, name) for name in ClassifierBaseConfig.model_fields}
        return cls(channels=data.channels, height=data.height, width=data.width, config=ClassifierBaseConfig(**fields))


class AdoptedSight(nn.Module):
    """The features below the last layer of a classifier, for images of another size or number of channels."""

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        self.size, self.channels = (spec.height, spec.width), spec.channels
        self.trunk, _ = trunk(spec.config, (spec.channels, *self.size))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        return self.trunk(resized(images, self.size))


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (b, c, h, w) at another size, without aliasing."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def changed(images: Tensor, draws: torch.Generator) -> Tensor:
    """Each image moved by up to a sixteenth of its side, under a little noise: still the same person."""
    moved = shift(images, max(1, min(images.shape[2:]) // 16), draws)
    noise = torch.randn(moved.shape, generator=draws, device=moved.device)
    return (moved + NOISE * noise).clamp(0, 1)


def contrast(features: Tensor, identities: Tensor) -> Tensor:
    """The supervised contrastive loss (Khosla et al. 2020, eq. 2) of features (n, f), each identity twice or more.

    log n without any knowledge; only images of other identities push apart.
    """
    unit = F.normalize(features, dim=1)
    logits = unit @ unit.T / TEMPERATURE
    same = identities[:, None] == identities[None]
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    shares = logits.masked_fill(itself, -math.inf).log_softmax(1).masked_fill(itself, 0.0)
    alike = same & ~itself
    return -((shares * alike).sum(1) / alike.sum(1).clamp_min(1)).mean()


def identity_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - cosine of features (b, f): 0 for the same person, about 1 for strangers, at most 2."""
    return 1 - F.cosine_similarity(one, other, dim=1, eps=1e-6)
