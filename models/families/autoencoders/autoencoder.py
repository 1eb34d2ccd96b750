"""The autoencoder: a code from which the image can be reconstructed, with optional penalties on the weights."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.families.autoencoders.base import CONVOLUTIONAL, AutoencoderBase, AutoencoderBaseConfig
from models.families.autoencoders.pca import PCAEncoder, explained_variance, zero_output
from models.family import Family
from models.nn.augment import shift
from models.nn.encoders import default_body
from models.types import Batch, ConfigError, DataSpec, Metrics

MIN_EXPLAINED, FEW_IMAGES = 0.8, 1000
"""`linear_path` is on by default if the principal axes explain this share of the variance of held-out images
(photographs .93 to .96, digits .77), or below this number of training images (better with 240 digits, worse with 1500).
"""
PLAIN_FASTER = 3  # times, a body without residual blocks
SHIFTED = 24  # pixels of the shorter side from which training images are shifted by default
WEIGHTS = ("l1_kernel", "l1_bias", "l2_kernel", "l2_bias")


class AutoencoderConfig(AutoencoderBaseConfig):
    """Losses are summed over the numbers of an image and averaged over the batch; so are the weights of penalties."""

    body: Literal["auto", "linear", "mlp", "conv", "resnet"] = Field(
        "auto",
        description="Architecture. conv: strided convolutions. resnet: with residual blocks between them. auto: resnet "
        "if both sides have at least 12 pixels, else mlp.",
    )
    shift: int | None = Field(
        None,
        ge=0,
        le=32,
        description="Largest random shift of training images, in pixels. Default: 1 if both sides have at least 24 "
        "pixels and the body is convolutional, else 0.",
    )
    reconstruction: Literal["mse", "bce"] = Field(
        "mse", description="mse: squared error. bce: cross-entropy, for images that are nearly black or white."
    )
    linear_path: Literal["none", "pca"] | None = Field(
        None,
        description="pca: add the network to a linear autoencoder on the principal axes of the data, which is where "
        "training then starts. Needs reconstruction=mse and code=linear. Default: pca if the axes explain most of the "
        "variance or there are fewer than 1,000 images, and there is no penalty.",
    )
    l1_kernel: float = Field(0.0, ge=0, le=10, description="Weight of the L1 norm of the kernels.")
    l1_bias: float = Field(0.0, ge=0, le=10, description="Weight of the L1 norm of the biases.")
    l2_kernel: float = Field(0.0, ge=0, le=10, description="Weight of the squared L2 norm of the kernels.")
    l2_bias: float = Field(0.0, ge=0, le=10, description="Weight of the squared L2 norm of the biases.")


class Autoencoder(AutoencoderBase):
    """With a linear body and squared error its optimum is PCA."""

    name = "autoencoder"
    summary = "Compresses images to short codes and reconstructs them."
    lecture = "Autoencoders: under- and over-complete, weight regularisation"
    Config = AutoencoderConfig
    milliseconds = 1.2
    least_images = 100_000
    bf16_on = ("cpu", "cuda")

    @classmethod
    def resolve_config(cls, config: AutoencoderConfig, data: DataSpec) -> AutoencoderConfig:
        body = "resnet" if config.body == "auto" and default_body(data.shape) == "conv" else config.body
        config = super().resolve_config(config.model_copy(update={"body": body}), data)
        if config.shift is None:
            suits = min(data.height, data.width) >= SHIFTED and config.body in CONVOLUTIONAL
            config = config.model_copy(update={"shift": int(suits)})
        if config.linear_path == "pca" and (config.reconstruction, config.code) != ("mse", "linear"):
            raise ConfigError(
                f"linear_path=pca needs reconstruction=mse and code=linear; you sent reconstruction="
                f"{config.reconstruction}, code={config.code}",
                field="linear_path",
                remedy="set both, or leave linear_path out",
            )
        return config

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = {"body": default_body(data.shape), "shift": 0} if engine < 2 else {}
        return earlier | super().earlier_settings(engine, data)

    @classmethod
    def milliseconds_per_image(cls, config: AutoencoderConfig, data: DataSpec) -> float:
        return super().milliseconds_per_image(config, data) / (1 if config.body == "resnet" else PLAIN_FASTER)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        if self.training and self.config.shift:
            batch = {**batch, "images": shift(batch["images"], self.config.shift, context.generator)}
        return super().loss(batch, context)

    def before_training(self, train: Columns) -> None:
        """Decide `linear_path` if the config left it open, and fit its axes unless they come from another model."""
        if self.config.linear_path is None:
            self._set_linear_path("pca" if self._suits_pca(train) else "none")
        if self.config.linear_path == "pca" and self.initialised_from is None:
            self.encoder.axes.fit(train)
            zero_output(self.encoder.body.last)
            zero_output(self.decoder)

    def init_from(self, other: Family) -> None:
        if isinstance(other, Autoencoder) and self.config.linear_path is None:
            self._set_linear_path(other.config.linear_path or "none")
        super().init_from(other)

    def _set_linear_path(self, path: str) -> None:
        self.config = self.config.model_copy(update={"linear_path": path})
        if path == "pca":
            self.encoder = PCAEncoder(self.encoder, self.data.shape, self.latent_dim).to(self.device)

    def _suits_pca(self, train: Columns) -> bool:
        """Few images, or images well explained by axes; and neither a penalty nor a large code is being studied."""
        settings = self.config
        plain = (settings.reconstruction, settings.code) == ("mse", "linear") and settings.body != "linear"
        free = not any(getattr(settings, name) for name in WEIGHTS) and 2 * self.latent_dim <= self.data.pixels
        few = len(train.columns["images"]) < FEW_IMAGES
        return plain and free and (few or explained_variance(train, self.latent_dim) > MIN_EXPLAINED)

    def decoder_output(self, codes: Tensor) -> Tensor:
        output = self.decoder(codes)
        return output + self.encoder.axes.decode(codes) if self.config.linear_path == "pca" else output

    def regularisation_term(
        self, codes: Tensor, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor | float, Metrics]:
        """L2 of the weights, as a term of the loss: weight decay beside Adam (AdamW) would be another penalty.

        L1 counts in the validation loss only: in training `step` applies it as a proximal step.
        """
        settings, penalty = self.config, 0.0
        if settings.l2_kernel:
            penalty = penalty + settings.l2_kernel * sum(kernel.square().sum() for kernel in self.kernels)
        if settings.l2_bias:
            penalty = penalty + settings.l2_bias * sum(bias.square().sum() for bias in self.biases)
        for weight, parameters in ((settings.l1_kernel, self.kernels), (settings.l1_bias, self.biases)):
            if weight and not self.training:
                penalty = penalty + weight * sum(parameter.abs().sum() for parameter in parameters)
        return penalty, {}

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        measured = super().step(batch, optimisers, context)
        rate, settings = optimisers["adam"].param_groups[0]["lr"], self.config
        if settings.l1_kernel:
            soft_threshold(self.kernels, rate * settings.l1_kernel)
        if settings.l1_bias:
            soft_threshold(self.biases, rate * settings.l1_bias)
        return measured

    @property
    def kernels(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.ndim > 1]

    @property
    def biases(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.ndim == 1]

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds the error on uniform noise (small if the model copies its input) and the share of zero weights."""
        measured = super().evaluate(train, validation, context)
        noise = torch.rand((256, *self.data.shape), generator=context.generator, device=self.device)
        measured["mse_noise"] = self._error(noise)
        if self.config.l1_kernel:
            zeros = sum(int((kernel == 0).sum()) for kernel in self.kernels)
            measured["zero_weights"] = zeros / sum(kernel.numel() for kernel in self.kernels)
        return measured

    def warnings(self, measured: dict[str, float]) -> list[str]:
        return [alarm.sentence for alarm in self._copying(measured["mse_noise"], measured["mse"])]

    def diagnose(self, inspection: Inspection) -> Iterator[Alarm]:
        """A model that copies its input, as soon as it reconstructs images."""
        yield from super().diagnose(inspection)
        images = inspection.probe["images"]
        error, variance = self._error(images), float((images - images.mean(0)).square().mean())
        if self.can_copy and error < 0.25 * variance:
            noise = torch.rand(images.shape, generator=inspection.context.generator, device=self.device)
            yield from self._copying(self._error(noise), error)

    @property
    def can_copy(self) -> bool:
        """Neither the size of the code nor a penalty keeps it from being a copy of the image."""
        penalised = any(getattr(self.config, name) for name in WEIGHTS)
        return not penalised and self.latent_dim >= self.data.pixels

    def _error(self, images: Tensor) -> float:
        return float((self.decode(self.encode(images)) - images).square().mean())

    def _copying(self, noise: float, error: float) -> Iterator[Alarm]:
        if self.can_copy and noise < 2 * error:
            yield Alarm(
                "identity",
                f"The model copies its input: it reproduces uniform noise about as well as images (mean squared error "
                f"{noise:.2g} against {error:.2g}). A code of {self.latent_dim} numbers for {self.data.pixels} pixels "
                "and no penalty teach it nothing about the data.",
                "Lower latent_dim, set l1_kernel or l2_kernel, or train a sparse, denoising or contractive "
                "autoencoder.",
                {"mse_noise": noise, "mse": error},
            )


@torch.no_grad()
def soft_threshold(parameters: list[Tensor], by: float) -> None:
    """The proximal step of the L1 norm: unlike a sub-gradient it gives weights that are exactly zero."""
    for parameter in parameters:
        parameter.copy_(torch.nn.functional.softshrink(parameter, by))
