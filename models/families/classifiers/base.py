"""What models that answer a question about an image share: a body, a last layer that starts at zero, augmentation, and
starting from the encoder of an autoencoder.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.families.autoencoders.base import CODES, Coding, Layer, default_hidden, default_latents, encoder
from models.family import Config, Family, OneLoss
from models.nn.augment import flip, shift
from models.nn.resnet import Trunk
from models.types import Batch, ConfigError, DataSpec


class JudgingConfig(Config):
    """Augmentation is off by default: a flipped digit is another sign. `init_from` an autoencoder decides the body."""

    learning_rate: float = Field(3e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["residual", "conv", "mlp", "linear"] = Field(
        "residual", description="residual: a deep network. The others are the encoders of autoencoders."
    )
    width: int | None = Field(
        None, ge=1, le=512, description="Channels of the first stage, doubled twice. Empty: from the data."
    )
    latent_dim: int | None = Field(None, ge=1, le=4096, description="Features that the bodies but residual end in.")
    hidden: tuple[Layer, ...] | None = Field(None, max_length=8, description="Sizes of the hidden layers of mlp.")
    code: Literal["linear", "relu", "sigmoid"] = Field("relu", description="Activation of those features.")
    linear_path: Literal["none", "pca"] = Field(
        "none", description="Comes with the encoder of `init_from`: principal axes beside it. Of no effect without one."
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of the last features hidden in each update.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay (AdamW).")
    trained: Literal["all", "head"] = Field(
        "all", description="head: only the last layer learns, as a linear probe of an encoder."
    )
    keep: Literal["last", "best"] = Field(
        "last", description="Which weights to publish: the last, or those of the least loss on images held out."
    )
    flip: bool = Field(False, description="Mirror half of the training images left to right.")
    shift: int = Field(0, ge=0, le=32, description="Move training images by up to so many pixels.")
    noise: float = Field(
        0.0, ge=0, le=4, description="Gaussian noise on training images (standard deviation), as certify asks for it."
    )


class Judging(OneLoss):
    """`answers` numbers for each image."""

    Config = JudgingConfig
    default_batch = 32
    default_epochs = 12
    warm_up = 100
    clip: ClassVar[float] = 1.0

    def __init__(self, config: JudgingConfig, data: DataSpec):
        super().__init__(config, data)
        self.trunk, features = trunk(config, data.shape)
        self.dropout = nn.Dropout(config.dropout)
        self.head = blank(features, self.answers(data))

    @classmethod
    @abstractmethod
    def answers(cls, data: DataSpec) -> int:
        """Numbers the last layer gives."""

    @classmethod
    def resolve_config(cls, config: JudgingConfig, data: DataSpec) -> JudgingConfig:
        config = super().resolve_config(config, data)
        latent_dim = config.latent_dim or default_latents(data)
        hidden = config.hidden if config.hidden is not None else default_hidden(data, latent_dim)
        width = config.width or (32 if data.count >= 20_000 else 16)
        return config.model_copy(update={"width": width, "latent_dim": latent_dim, "hidden": hidden})

    def init_from(self, other: Family) -> None:
        """Start from a model of the same family, or take over the encoder of an autoencoder as the body."""
        if not isinstance(other, Coding):
            super().init_from(other)
            return
        if other.data.shape != self.data.shape:
            given, wanted = ("x".join(map(str, shape)) for shape in (other.data.shape, self.data.shape))
            raise ConfigError(
                f"that encoder reads images of {given} (channels, height, width), this dataset has {wanted}",
                field="init_from",
                remedy="import the dataset again at the size and channels of the encoder",
            )
        shape = {name: getattr(other.config, name) for name in ("latent_dim", "hidden", "width", "code")}
        shape["linear_path"] = getattr(other.config, "linear_path", None) or "none"
        body = "conv" if other.config.body == "unet" else other.config.body
        self.config = self.config.model_copy(update={**shape, "body": body})
        self.trunk = nn.Sequential(other.code_encoder(), CODES[other.config.code]()).requires_grad_(True)
        self.head = blank(self.config.latent_dim, self.answers(self.data))
        self.to(other.device).train()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        learning = self.head if self.config.trained == "head" else self
        rates = {"lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}
        return {"adam": torch.optim.AdamW(learning.parameters(), fused=True, **rates)}

    def judge(self, images: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> (b, answers)."""
        probing = self.training and self.config.trained == "head"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not probing):
            features = self.trunk(images)
        return self.head(self.dropout(features))

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor | None:
        return self.mistake(probe) if set(self.needs) <= set(probe) else None

    @abstractmethod
    def mistake(self, batch: Batch) -> Tensor:
        """How wrong the answers to a batch are: the loss without what training adds to it."""

    def augment(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Training images, mirrored, moved and made noisy as configured."""
        if self.config.flip:
            images = flip(images, draws)
        if self.config.shift:
            images = shift(images, self.config.shift, draws)
        if self.config.noise:
            images = images + self.config.noise * torch.randn(images.shape, generator=draws, device=images.device)
        return images


def trunk(config: JudgingConfig, shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """The body that the config asks for, and the number of its features."""
    if config.body == "residual":
        found = Trunk(shape, config.width)
        return found, found.features
    return nn.Sequential(encoder(config, shape, config.latent_dim), CODES[config.code]()), config.latent_dim


def blank(features: int, answers: int) -> nn.Linear:
    """A last layer that answers zero, so that no first update is wild."""
    layer = nn.Linear(features, answers)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
