"""The autoencoder: a code that keeps what is needed to draw the image again."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.families.autoencoders.base import Coding, CodingConfig
from models.families.autoencoders.pca import OverAxes, explained, silence
from models.family import Family
from models.losses import reconstruction as losses
from models.types import Batch, ConfigError, DataSpec, Metrics

EXPLAINED, MANY = 0.8, 1000
"""Principal axes are a better start than none where they explain so much of images not seen (photographs .93 to .96,
digits .77), or where there are fewer images to learn from (240 digits; with 1500 it is the other way round).
"""
WEIGHTS = ("l1_kernel", "l1_bias", "l2_kernel", "l2_bias")


class AutoencoderConfig(CodingConfig):
    """Losses are summed over the numbers of an image and averaged over the batch; so are the weights of penalties."""

    reconstruction: Literal["mse", "bce"] = Field(
        "mse", description="mse: squared error. bce: cross-entropy, for images that are nearly black or white."
    )
    linear_path: Literal["none", "pca"] | None = Field(
        None,
        description="pca: the network adds to the principal axes of the data what they miss, so that it starts as good "
        "as they are. Empty: where it can be had and is no worse.",
    )
    l1_kernel: float = Field(0.0, ge=0, le=10, description="Weight of the sum of absolute kernel weights.")
    l1_bias: float = Field(0.0, ge=0, le=10, description="The same for biases.")
    l2_kernel: float = Field(0.0, ge=0, le=10, description="Weight of the sum of squared kernel weights.")
    l2_bias: float = Field(0.0, ge=0, le=10, description="The same for biases.")


class Autoencoder(Coding):
    """With a linear body and squared error its optimum is PCA."""

    name = "autoencoder"
    summary = "Compresses images to short codes and draws them again."
    lecture = "Autoencoders: under- and over-complete, weight regularisation"
    Config = AutoencoderConfig

    @classmethod
    def resolve_config(cls, config: AutoencoderConfig, data: DataSpec) -> AutoencoderConfig:
        config = super().resolve_config(config, data)
        if config.linear_path == "pca" and (config.reconstruction, config.code) != ("mse", "linear"):
            raise ConfigError(
                "principal axes give pixels and codes of any sign, not logits nor what an activation leaves",
                field="linear_path",
                remedy="use reconstruction mse and code linear, or no linear_path",
            )
        return config

    def before_training(self, train: Columns) -> None:
        """Decide whether to start from the principal axes, and fit them, unless they come from another model."""
        if self.config.linear_path is None:
            self._choose("pca" if self._suits(train) else "none")
        if self.config.linear_path == "pca" and self.initialised_from is None:
            self.encoder.axes.fit(train)
            silence(self.encoder.body.last)
            silence(self.decoder)

    def init_from(self, other: Family) -> None:
        if isinstance(other, Autoencoder) and self.config.linear_path is None:
            self._choose(other.config.linear_path or "none")
        super().init_from(other)

    def _choose(self, path: str) -> None:
        self.config = self.config.model_copy(update={"linear_path": path})
        if path == "pca":
            self.encoder = OverAxes(self.encoder, self.data.shape, self.latent_dim).to(self.device)

    def _suits(self, train: Columns) -> bool:
        """Images are few, or well explained by axes; and neither a penalty nor a large code is under study."""
        settings = self.config
        plain = (settings.reconstruction, settings.code) == ("mse", "linear") and settings.body != "linear"
        free = not any(getattr(settings, name) for name in WEIGHTS) and 2 * self.latent_dim <= self.data.pixels
        few = len(train.columns["images"]) < MANY
        return plain and free and (few or explained(train, self.latent_dim) > EXPLAINED)

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        error = self.reconstruction(batch["images"])
        return error + self._l2(), {"reconstruction": error.detach()}

    def drawn(self, codes: Tensor) -> Tensor:
        """The decoder's output (b, c, h, w), before `pixels`."""
        output = self.decoder(codes)
        return output + self.encoder.axes.decode(codes) if self.config.linear_path == "pca" else output

    def decode(self, latents: Tensor) -> Tensor:
        return self.pixels(self.drawn(latents))

    def reconstruction(self, images: Tensor) -> Tensor:
        """Mean over the images of their error, summed over the numbers of each."""
        distance = losses.bernoulli if self.config.reconstruction == "bce" else losses.squared_error
        return distance(self.drawn(self.encode(images)), images).mean()

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        """The loss with all its penalties."""
        settings, penalty = self.config, self._l2()
        for weight, parameters in ((settings.l1_kernel, self.kernels), (settings.l1_bias, self.biases)):
            if weight:
                penalty = penalty + weight * sum(parameter.abs().sum() for parameter in parameters)
        return self.reconstruction(probe["images"]) + penalty

    def pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.reconstruction == "bce" else output.clamp(0, 1)

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], context: StepContext) -> Metrics:
        found = super().step(batch, optimisers, context)
        rate, settings = optimisers["adam"].param_groups[0]["lr"], self.config
        if settings.l1_kernel:
            shrink(self.kernels, rate * settings.l1_kernel)
        if settings.l1_bias:
            shrink(self.biases, rate * settings.l1_bias)
        return found

    @property
    def kernels(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.ndim > 1]

    @property
    def biases(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.ndim == 1]

    def _l2(self) -> Tensor | float:
        """The squared weights, in the loss: decay beside Adam (AdamW) would be another penalty."""
        settings, found = self.config, 0.0
        if settings.l2_kernel:
            found = found + settings.l2_kernel * sum(kernel.square().sum() for kernel in self.kernels)
        if settings.l2_bias:
            found = found + settings.l2_bias * sum(bias.square().sum() for bias in self.biases)
        return found

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds the share of kernel weights that are zero, and the copies-noise probe: the error on uniform noise."""
        found = super().evaluate(train, validation, context)
        noise = torch.rand((256, *self.data.shape), generator=context.generator, device=self.device)
        found["mse_noise"] = self._error(noise)
        if self.config.l1_kernel:
            zeros = sum(int((kernel == 0).sum()) for kernel in self.kernels)
            found["zero_weights"] = zeros / sum(kernel.numel() for kernel in self.kernels)
        return found

    def warnings(self, measured: dict[str, float]) -> list[str]:
        return [alarm.sentence for alarm in self._copying(measured["mse_noise"], measured["mse"])]

    def diagnose(self, look: Inspection) -> Iterator[Alarm]:
        """Copying, once the model has learned to reproduce images at all."""
        yield from super().diagnose(look)
        images = look.probe["images"]
        error, spread = self._error(images), float((images - images.mean(0)).square().mean())
        if self.free and error < 0.25 * spread:
            noise = torch.rand(images.shape, generator=look.context.generator, device=self.device)
            yield from self._copying(self._error(noise), error)

    @property
    def free(self) -> bool:
        """Nothing keeps the code from being a copy of the image."""
        penalised = any(getattr(self.config, name) for name in WEIGHTS)
        return not penalised and self.latent_dim >= self.data.pixels

    def _error(self, images: Tensor) -> float:
        return float((self.decode(self.encode(images)) - images).square().mean())

    def _copying(self, noise: float, error: float) -> Iterator[Alarm]:
        if self.free and noise < 2 * error:
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
def shrink(parameters: list[Tensor], by: float) -> None:
    """Soft threshold: the proximal step of the L1 norm, which makes zeros exact where a sub-gradient never does."""
    for parameter in parameters:
        parameter.copy_(torch.nn.functional.softshrink(parameter, by))
