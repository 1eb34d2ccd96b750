"""The contractive autoencoder (Rifai et al. 2011): penalises the Jacobian of the code with respect to the image."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.base import AutoencoderBase, AutoencoderBaseConfig, default_overcomplete
from models.families.autoencoders.pca import PrincipalAxes
from models.losses import reconstruction as losses
from models.types import Batch, ConfigError, DataSpec, Metrics

MANY_UNITS = 4  # pixels for each unit, at most, with tied weights by default
ROWS = 500  # validation images whose Jacobian is measured


class ContractiveAutoencoderConfig(AutoencoderBaseConfig):
    """The penalty is the squared Frobenius norm of the Jacobian of the code, averaged over the batch."""

    learning_rate: float = Field(2e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    body: Literal["auto", "linear", "mlp", "conv"] = Field(
        "auto", description="Architecture. auto: linear, one layer to the code."
    )
    code: Literal["linear", "relu", "sigmoid"] = Field("sigmoid", description="Activation of the code.")
    reconstruction: Literal["mse", "bce"] | None = Field(
        None,
        description="mse: squared error. bce: cross-entropy, for images that are nearly black or white. Default: mse "
        "for one layer that is not tied, else bce.",
    )
    tied: bool | None = Field(
        None,
        description="Decode with the transposed weights of the encoder, so that a larger decoder cannot make up for a "
        "smaller encoder. Needs body=linear. Default: true for body=linear and a code at least a quarter as large as "
        "the image: a few tied units between 0 and 1 cannot span the range of the images.",
    )
    contraction: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="Weight of the squared norm of the Jacobian. Default: 0.1; for one layer that is not tied 1 for "
        "784 numbers in an image and in proportion for others, as the squared error grows with them.",
    )
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
        by_default = config.body == "linear" and config.latent_dim >= data.pixels / MANY_UNITS
        tied = by_default if config.tied is None else config.tied
        from_pca = config.body == "linear" and not tied
        reconstruction = config.reconstruction or ("mse" if from_pca else "bce")
        weight = (data.pixels / 784 if from_pca else 0.1) if config.contraction is None else config.contraction
        chosen = {"tied": tied, "reconstruction": reconstruction, "contraction": min(1000.0, weight)}
        return config.model_copy(update=chosen)

    @classmethod
    def stored_config(cls, config: dict, data: DataSpec, engine: int) -> dict[str, Any]:
        config = super().stored_config(config, data, engine)
        if engine < 2 and config.get("tied") is None:
            config["tied"] = config.get("body", "auto") in ("auto", "linear")
        return config

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = {"reconstruction": "bce", "contraction": 0.1} if engine < 2 else {}
        return earlier | super().earlier_settings(engine, data)

    @torch.no_grad()
    def before_training(self, train: Columns) -> None:
        """Start one untied layer at PCA: codes are the activation of half the standardised principal components.

        From random weights the units would stay in the middle of a sigmoid for thousands of updates.
        """
        axes = PrincipalAxes(self.data.shape, self.latent_dim)
        started = self.config.body == "linear" and not self.config.tied and self.config.reconstruction == "mse"
        if self.initialised_from is not None or not started or axes.cell > 1 or self.latent_dim >= self.data.pixels:
            return
        axes.fit(train)
        limit = max(2, metrics.NUMBERS // self.data.pixels)
        rows = torch.cat([images.flatten(1) for images in metrics.spaced_rows(train, limit=min(metrics.ROWS, limit))])
        spread = ((rows - axes.mean) @ axes.axes.T).std(0, correction=0)
        spread = spread.clamp_min(0.1 * max(float(spread.max()), 0.01))  # few images have fewer axes than units
        last, decoder = self.encoder.last, self.decoder.layers[-1]
        last.weight.copy_(0.5 * axes.axes / spread[:, None])
        last.bias.copy_(-(last.weight.cpu() @ axes.mean))
        codes = self.encode(rows.unflatten(1, self.data.shape).to(self.device)).cpu()
        centred = codes - codes.mean(0)
        ridge = 1e-4 * torch.eye(self.latent_dim) * centred.square().sum(0).mean().clamp_min(1e-8)
        weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (rows - rows.mean(0))).T  # least squares
        decoder.weight.copy_(weight)
        decoder.bias.copy_(rows.mean(0) - weight @ codes.mean(0))

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
