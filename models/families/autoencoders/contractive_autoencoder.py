"""The contractive autoencoder (Rifai et al. 2011): penalises the Jacobian of the code with respect to the image."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.base import AutoencoderBase, AutoencoderBaseConfig, default_overcomplete
from models.losses import reconstruction as losses
from models.types import Batch, ConfigError, DataSpec, Metrics

ROWS = 500  # validation images whose Jacobian is measured


class ContractiveAutoencoderConfig(AutoencoderBaseConfig):
    """The penalty is the squared Frobenius norm of the Jacobian of the code, averaged over the batch."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["auto", "linear", "mlp", "conv"] = Field(
        "auto", description="Architecture. auto: linear, one layer to the code."
    )
    code: Literal["linear", "relu", "sigmoid"] = Field("sigmoid", description="Activation of the code.")
    reconstruction: Literal["mse", "bce"] = Field(
        "bce", description="mse: squared error. bce: cross-entropy, for images that are nearly black or white."
    )
    tied: bool | None = Field(
        None,
        description="Decode with the transposed weights of the encoder, so that a larger decoder cannot make up for a "
        "smaller encoder. Needs body=linear. Default: true for body=linear.",
    )
    contraction: float = Field(0.1, ge=0, le=1000, description="Weight of the squared norm of the Jacobian.")
    probes: int = Field(
        1,
        ge=1,
        le=16,
        description="Random directions per update that estimate the norm, for encoders of several layers.",
    )


class ContractiveAutoencoder(AutoencoderBase):
    """L = |x - decode(f(x))|^2 + contraction |df / dx|_F^2: exact for one layer, else Hutchinson's estimate."""

    name = "contractive_autoencoder"
    summary = "Learns codes that change little when the image does."
    lecture = "Contractive autoencoders"
    milliseconds = 0.3
    Config = ContractiveAutoencoderConfig

    def __init__(self, config: ContractiveAutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        if config.tied:
            self.decoder, self.shift = None, nn.Parameter(torch.zeros(data.pixels))

    @classmethod
    def resolve_config(cls, config: ContractiveAutoencoderConfig, data: DataSpec) -> ContractiveAutoencoderConfig:
        defaults = {"body": "linear"} if config.body == "auto" else {}
        if config.latent_dim is None and defaults:
            defaults["latent_dim"] = default_overcomplete(data, most=1024)
        config = super().resolve_config(config.model_copy(update=defaults), data)
        if config.tied and config.body != "linear":
            raise ConfigError(
                f"tied=true needs body=linear; you sent body={config.body}", field="tied", remedy="leave tied out"
            )
        return config.model_copy(update={"tied": config.body == "linear" if config.tied is None else config.tied})

    def decoder_output(self, codes: Tensor) -> Tensor:
        if not self.config.tied:
            return self.decoder(codes)
        return F.linear(codes, self.encoder.last.weight.T, self.shift).unflatten(1, self.data.shape)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        with torch.enable_grad():  # Hutchinson's estimate differentiates the code with respect to the images
            images = batch["images"].detach().requires_grad_(self.config.body != "linear")
            codes = self.encode(images)
            penalty, measured = self.regularisation_term(codes, images, context.generator)
            error = self.reconstruction_term(codes, images)
            return error + penalty, {"reconstruction": error.detach(), **measured}

    def regularisation_term(self, codes: Tensor, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        penalty = self.contraction(codes, images, generator).mean()
        return self.config.contraction * penalty, {"contraction": penalty.detach()}

    def contraction(self, codes: Tensor, images: Tensor, generator: torch.Generator) -> Tensor:
        """(b,): |d code / d image|_F^2 for codes (b, d) of images, which need gradients unless the body is linear."""
        if self.config.body == "linear":
            slopes = {"sigmoid": codes * (1 - codes), "relu": (codes > 0).float(), "linear": torch.ones_like(codes)}
            return losses.one_layer_contraction(slopes[self.config.code], self.encoder.last.weight)
        return losses.hutchinson_contraction(codes, images, generator, self.config.probes)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds the mean squared norm of the Jacobian on at most 500 images, and the same per unit of code variance."""
        measured = super().evaluate(train, validation, context)
        codes, norms = [], []
        for images in metrics.spaced_rows(validation, limit=ROWS):
            with torch.enable_grad():
                images = images.to(self.device).requires_grad_(self.config.body != "linear")
                code = self.encode(images)
                norm = self.contraction(code, images, context.generator)
            codes.append(code.detach().cpu())
            norms.append(norm.detach().cpu())
        measured["contraction"] = float(torch.cat(norms).mean())
        variance = float(torch.cat(codes).var(0, correction=0).sum())
        per_variance = {"contraction_per_variance": measured["contraction"] / variance} if variance > 1e-12 else {}
        return measured | per_variance
