"""The autoencoder: a code that keeps what is needed to draw the image again."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from models import losses
from models.coding import Coding, CodingConfig
from models.data import Columns
from models.moment import Moment
from models.types import Batch, Metrics

WEIGHTS = ("l1_kernel", "l1_bias", "l2_kernel", "l2_bias")


class AutoencoderConfig(CodingConfig):
    """Losses are summed over the numbers of an image and averaged over the batch; so are the weights of penalties."""

    reconstruction: Literal["mse", "bce"] = Field(
        "mse", description="mse: squared error. bce: cross-entropy, for images that are nearly black or white."
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

    def loss(self, batch: Batch, moment: Moment) -> tuple[Tensor, Metrics]:
        images = batch["images"]
        output = self.decoder(self.encode(images))
        distance = losses.bernoulli if self.config.reconstruction == "bce" else losses.squared_error
        error = distance(output, images).mean()
        return error + self._l2(), {"reconstruction": error.detach()}

    def pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.reconstruction == "bce" else output.clamp(0, 1)

    def step(self, batch: Batch, optimisers: dict[str, Optimizer], moment: Moment) -> Metrics:
        found = super().step(batch, optimisers, moment)
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

    def evaluate(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
        """Adds the share of kernel weights that are zero, and the copies-noise probe: the error on uniform noise."""
        found = super().evaluate(train, validation, moment)
        noise = torch.rand((256, *self.data.shape), generator=moment.generator, device=self.device)
        found["mse_noise"] = float((self.decode(self.encode(noise)) - noise).square().mean())
        if self.config.l1_kernel:
            zeros = sum(int((kernel == 0).sum()) for kernel in self.kernels)
            found["zero_weights"] = zeros / sum(kernel.numel() for kernel in self.kernels)
        return found

    def remarks(self, measured: dict[str, float]) -> list[str]:
        free = not any(getattr(self.config, name) for name in WEIGHTS)
        if free and self.latent_dim >= self.data.pixels and measured["mse_noise"] < 2 * measured["mse"]:
            return [
                f"The model copies its input: it reproduces uniform noise about as well as images (mean squared error "
                f"{measured['mse_noise']:.2g} against {measured['mse']:.2g}). A code of {self.latent_dim} numbers "
                f"for {self.data.pixels} pixels and no penalty teach it nothing about the data: lower latent_dim, set "
                "l1_kernel or l2_kernel, or train a sparse, denoising or contractive autoencoder."
            ]
        return []


@torch.no_grad()
def shrink(parameters: list[Tensor], by: float) -> None:
    """Soft threshold: the proximal step of the L1 norm, which makes zeros exact where a sub-gradient never does."""
    for parameter in parameters:
        parameter.copy_(torch.nn.functional.softshrink(parameter, by))
