"""The contractive autoencoder (Rifai et al. 2011): a code that moves little when the image moves."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.base import Coding, CodingConfig, default_overcomplete
from models.losses import reconstruction as losses
from models.types import Batch, ConfigError, DataSpec, Metrics

ROWS = 500


class ContractiveAutoencoderConfig(CodingConfig):
    """The penalty is the squared Frobenius norm of the Jacobian of the code, averaged over the batch."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["auto", "linear", "mlp", "conv"] = Field("auto", description="auto: linear, one layer to the code.")
    code: Literal["linear", "relu", "sigmoid"] = Field("sigmoid", description="Activation of the code.")
    reconstruction: Literal["mse", "bce"] = Field(
        "bce", description="mse: squared error. bce: cross-entropy, for images that are nearly black or white."
    )
    tied: bool | None = Field(
        None,
        description="Draw with the encoder's own weights, so that a smaller encoder cannot hide behind a larger "
        "decoder. Empty: yes for body linear, which alone can.",
    )
    contraction: float = Field(0.1, ge=0, le=1000, description="Weight of the penalty.")
    probes: int = Field(1, ge=1, le=16, description="Random directions per update, for encoders of several layers.")


class ContractiveAutoencoder(Coding):
    """The penalty of one layer is exact; that of a deep encoder is Hutchinson's estimate."""

    name = "contractive_autoencoder"
    summary = "Learns codes that change little when the image does."
    lecture = "Contractive autoencoders"
    Config = ContractiveAutoencoderConfig

    def __init__(self, config: ContractiveAutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        if config.tied:
            self.decoder, self.shift = None, nn.Parameter(torch.zeros(data.pixels))

    @classmethod
    def resolve_config(cls, config: ContractiveAutoencoderConfig, data: DataSpec) -> ContractiveAutoencoderConfig:
        wanted = {"body": "linear"} if config.body == "auto" else {}
        if config.latent_dim is None and wanted:
            wanted["latent_dim"] = default_overcomplete(data, most=1024)
        config = super().resolve_config(config.model_copy(update=wanted), data)
        if config.tied and config.body != "linear":
            raise ConfigError("only a linear body has weights to tie", field="tied", remedy="leave tied out")
        return config.model_copy(update={"tied": config.body == "linear" if config.tied is None else config.tied})

    def drawn(self, codes: Tensor) -> Tensor:
        """Codes (b, d) -> (b, c, h, w), before `pixels`."""
        if not self.config.tied:
            return self.decoder(codes)
        return F.linear(codes, self.encoder.last.weight.T, self.shift).unflatten(1, self.data.shape)

    def decode(self, latents: Tensor) -> Tensor:
        return self.pixels(self.drawn(latents))

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images = batch["images"]
        codes, penalty = self.contracted(images, context.generator)
        distance = losses.bernoulli if self.config.reconstruction == "bce" else losses.squared_error
        error, penalty = distance(self.drawn(codes), images).mean(), penalty.mean()
        return error + self.config.contraction * penalty, {
            "reconstruction": error.detach(),
            "contraction": penalty.detach(),
        }

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        with torch.enable_grad():
            return self.loss(probe, replace(context, generator=self.fixed(context)))[0].detach()

    def contracted(self, images: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes (b, d), and |d code / d image|_F^2 (b,)."""
        if self.config.body == "linear":
            codes = self.encode(images)
            slopes = {"sigmoid": codes * (1 - codes), "relu": (codes > 0).float(), "linear": torch.ones_like(codes)}
            return codes, losses.one_layer_contraction(slopes[self.config.code], self.encoder.last.weight)
        images = images.detach().requires_grad_()
        codes = self.encode(images)
        return codes, losses.hutchinson_contraction(codes, images, draws, self.config.probes)

    def pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.reconstruction == "bce" else output.clamp(0, 1)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds the mean squared norm of the Jacobian on at most 500 images, and the same per unit of code variance."""
        found = super().evaluate(train, validation, context)
        codes, norms = [], []
        for images in metrics.spread(validation, limit=ROWS):
            with torch.enable_grad():
                code, norm = self.contracted(images.to(self.device), context.generator)
            codes.append(code.detach().cpu())
            norms.append(norm.detach().cpu())
        found["contraction"] = float(torch.cat(norms).mean())
        variance = float(torch.cat(codes).var(0, correction=0).sum())
        return found | ({"contraction_per_variance": found["contraction"] / variance} if variance > 1e-12 else {})
