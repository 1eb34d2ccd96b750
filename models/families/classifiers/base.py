"""What classifiers and regressors share: trunk, head, augmentation, and starting from an autoencoder's encoder."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.data import Columns
from models.families.autoencoders.base import (
    CODES,
    AutoencoderBase,
    Layer,
    build_encoder,
    default_hidden,
    default_latents,
)
from models.family import Config, Family, OneLoss
from models.nn.augment import flip, shift
from models.nn.resnet import ResNetTrunk
from models.training.published_weights import PublishedWeightsConfig, PublishesAverages
from models.types import Batch, ConfigError, DataSpec


class ClassifierBaseConfig(PublishedWeightsConfig, Config):
    """Mirroring is off by default: a mirrored digit is no digit. `init_from` an autoencoder sets the body."""

    learning_rate: float = Field(3e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["residual", "conv", "resnet", "mlp", "linear"] = Field(
        "residual",
        description="Architecture of the trunk. residual: a deep residual network; the others: the encoders of the "
        "autoencoders.",
    )
    width: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Channels of the first stage, doubled twice. Default: chosen from the dataset (32 from 20 000 "
        "images, else 16).",
    )
    latent_dim: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Size of the last layer before the head (not for residual). Default: chosen from the dataset.",
    )
    hidden: tuple[Layer, ...] | None = Field(
        None, max_length=8, description="Sizes of the hidden layers of mlp. Default: chosen from the dataset."
    )
    code: Literal["linear", "relu", "sigmoid"] = Field(
        "relu", description="Activation of the last layer before the head (not for residual)."
    )
    linear_path: Literal["none", "pca"] = Field(
        "none",
        description="Set by the encoder of `init_from`: pca adds a linear path along principal axes. Ignored without "
        "init_from.",
    )
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Fraction of the features before the head that are dropped in each update."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled weight decay (AdamW).")
    trained: Literal["all", "head"] = Field(
        "all", description="head: trains the last layer alone, a linear probe of the encoder; all: trains everything."
    )
    flip: bool = Field(False, description="Mirror a random half of the training images left to right.")
    shift: int | None = Field(
        None,
        ge=0,
        le=32,
        description="Largest random shift of training images, in pixels. Default: for classes, a fourteenth of the "
        "smaller side if nine in ten training images have a frame of one colour; else 0.",
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=4,
        description="Standard deviation of Gaussian noise added to training images; train with the sigma of certify.",
    )


class ClassifierBase(PublishesAverages, OneLoss):
    """Images (B, C, H, W) in [0, 1] -> `n_outputs` numbers (B, K): trunk, dropout, linear head."""

    Config = ClassifierBaseConfig
    default_batch = 32
    default_epochs = 12
    milliseconds = 0.5
    warm_up = 100
    clip: ClassVar[float] = 1.0

    def __init__(self, config: ClassifierBaseConfig, data: DataSpec):
        super().__init__(config, data)
        self.trunk, features = trunk(config, data.shape)
        self.dropout = nn.Dropout(config.dropout)
        self.head = zero_init_linear(features, self.n_outputs(data))

    @classmethod
    @abstractmethod
    def n_outputs(cls, data: DataSpec) -> int:
        """Size of the head."""

    @classmethod
    def resolve_config(cls, config: ClassifierBaseConfig, data: DataSpec) -> ClassifierBaseConfig:
        config = super().resolve_config(config, data)
        latent_dim = config.latent_dim or default_latents(data)
        hidden = config.hidden if config.hidden is not None else default_hidden(data, latent_dim)
        width = config.width or (32 if data.count >= 20_000 else 16)
        return config.model_copy(update={"width": width, "latent_dim": latent_dim, "hidden": hidden})

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        return ({"shift": 0} if engine < 2 else {}) | super().earlier_settings(engine, data)

    def before_training(self, train: Columns) -> None:
        super().before_training(train)
        if self.config.shift is None:
            self.config = self.config.model_copy(update={"shift": self.default_shift(train)})

    def default_shift(self, train: Columns) -> int:
        """The shift of training images that cannot change what is predicted, judged by the images."""
        return 0

    def init_from(self, other: Family) -> None:
        """Start from a model of the same family, or take over the encoder of an autoencoder as the trunk."""
        if not isinstance(other, AutoencoderBase):
            super().init_from(other)
            return
        if other.data.shape != self.data.shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (other.data.shape, self.data.shape))
            raise ConfigError(
                f"The encoder of init_from takes {theirs} (channels, height, width); this dataset has {ours}.",
                field="init_from",
                remedy="Import the dataset again at the size and channels of the encoder.",
            )
        shape = {name: getattr(other.config, name) for name in ("latent_dim", "hidden", "width", "code")}
        shape["linear_path"] = getattr(other.config, "linear_path", None) or "none"
        body = "conv" if other.config.body == "unet" else other.config.body
        self.config = self.config.model_copy(update={**shape, "body": body})
        self.trunk = nn.Sequential(other.deterministic_encoder(), CODES[other.config.code]()).requires_grad_(True)
        self.head = zero_init_linear(self.config.latent_dim, self.n_outputs(self.data))
        self.to(other.device).train()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        trained = self.head if self.config.trained == "head" else self
        rates = {"lr": self.config.learning_rate, "weight_decay": self.config.weight_decay}
        return {"adam": torch.optim.AdamW(trained.parameters(), fused=True, **rates)}

    def predict(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, n_outputs)."""
        probing = self.training and self.config.trained == "head"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not probing):
            features = self.trunk(images)
        return self.head(self.dropout(features))

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor | None:
        return self.plain_loss(probe) if set(self.needs) <= set(probe) else None

    @abstractmethod
    def plain_loss(self, batch: Batch) -> Tensor:
        """The loss without augmentation, weights or attacks (a scalar); on validation images, the validation loss."""

    def augment(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Training images (B, C, H, W), mirrored, shifted and with noise added as configured."""
        if self.config.flip:
            images = flip(images, draws)
        if self.config.shift:
            images = shift(images, self.config.shift, draws)
        if self.config.noise:
            images = images + self.config.noise * torch.randn(images.shape, generator=draws, device=images.device)
        return images


def trunk(config: ClassifierBaseConfig, shape: tuple[int, int, int]) -> tuple[nn.Module, int]:
    """The trunk that the config asks for, and the number of its features."""
    if config.body == "residual":
        network = ResNetTrunk(shape, config.width)
        return network, network.features
    return nn.Sequential(build_encoder(config, shape, config.latent_dim), CODES[config.code]()), config.latent_dim


def zero_init_linear(features: int, outputs: int) -> nn.Linear:
    """A linear layer whose first output is zero, which keeps the first updates small."""
    layer = nn.Linear(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the rows (B, K) whose largest logit is that of the label (B,), a scalar without a gradient."""
    return (logits.detach().argmax(1) == labels).float().mean()
