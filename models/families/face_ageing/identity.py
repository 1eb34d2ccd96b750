"""Identity network: its features are similar for one person at every age. Trained with the supervised contrastive loss.

Two augmented views of each image, and all images of one identity, are positive pairs.
"""

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.classifiers.base import ClassifierBaseConfig, trunk
from models.nn.resnet import ResNetTrunk
from models.types import DataSpec

FEATURES = 64
LONGEST = 64  # longer sides are scaled down
TEMPERATURE = 0.2


class SmallResNet(nn.Module):
    """Differentiable resize, ResNet trunk, linear layer: (b, c, h, w) in [0, 1] -> (b, out)."""

    def __init__(self, shape: tuple[int, int, int], out: int, width: int = 16):
        super().__init__()
        scale = min(1.0, LONGEST / max(shape[1:]))
        self.size = max(1, round(shape[1] * scale)), max(1, round(shape[2] * scale))
        self.trunk = ResNetTrunk((shape[0], *self.size), width)
        self.last = nn.Linear(self.trunk.features, out)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.trunk(resized(images, self.size)))


class TrunkSpec(BaseModel):
    """The architecture of a classifier of identities, and the channels and size of its images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1, le=256)
    width: int = Field(ge=1, le=256)
    config: ClassifierBaseConfig

    @classmethod
    def of(cls, config: ClassifierBaseConfig, data: DataSpec) -> "TrunkSpec":
        fields = {name: getattr(config, name) for name in ClassifierBaseConfig.model_fields}
        return cls(channels=data.channels, height=data.height, width=data.width, config=ClassifierBaseConfig(**fields))


class ClassifierTrunk(nn.Module):
    """Features below the last layer of a classifier, for images of any size and number of channels."""

    def __init__(self, spec: TrunkSpec):
        super().__init__()
        self.size, self.channels = (spec.height, spec.width), spec.channels
        self.trunk, _ = trunk(spec.config, (spec.channels, *self.size))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.channels:
            images = images.mean(1, keepdim=True).expand(-1, self.channels, -1, -1)
        return self.trunk(resized(images, self.size))


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (b, c, h, w), bilinearly resized with antialiasing."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def supervised_contrastive_loss(features: Tensor, identities: Tensor) -> Tensor:
    """Khosla et al. 2020, eq. 2, of features (n, f) with identities (n,), each of which occurs at least twice.

    -1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / t) / sum_{a != i} exp(z_i z_a / t)), averaged over i; P(i) are the other
    images of the identity of i, z unit features, t the temperature. About log n for random features.
    """
    unit = F.normalize(features, dim=1)
    logits = unit @ unit.T / TEMPERATURE
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    log_probability = logits.masked_fill(itself, -math.inf).log_softmax(1).masked_fill(itself, 0.0)
    positive = (identities[:, None] == identities[None]) & ~itself
    return -((log_probability * positive).sum(1) / positive.sum(1).clamp_min(1)).mean()


def identity_distance(one: Tensor, other: Tensor) -> Tensor:
    """1 - cosine similarity of features (b, f): 0 for the same person, about 1 for different ones, at most 2."""
    return 1 - F.cosine_similarity(one, other, dim=1, eps=1e-6)
