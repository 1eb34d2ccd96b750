"""The denoising autoencoder (Vincent et al. 2008): reconstructs the clean image from a noisy one."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Denoises
from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.base import PAIRS, AutoencoderBase, AutoencoderBaseConfig
from models.families.autoencoders.corruption import BY_NAME, corrupt, masking, median_filter
from models.families.autoencoders.layerwise import layer_at, layer_output, layer_pairs
from models.family import Family, default_effort
from models.losses import reconstruction as losses
from models.nn.encoders import default_body
from models.nn.unet import UNet
from models.types import Batch, ConfigError, DataSpec, Metrics

BLACK_OR_WHITE = 0.8
"""Share of black and white numbers from which the cross-entropy is the default: digits .91, glyphs .95, photographs
.35. Digits of 8x8 pixels (.65) are restored better under the squared error, by .3 dB with half of the pixels masked.
"""
ROWS = 2000  # validation images that are denoised in `evaluate`


class DenoisingAutoencoderConfig(AutoencoderBaseConfig):
    """The error against the clean image is summed over its numbers and averaged over the batch."""

    body: Literal["auto", "linear", "mlp", "conv", "unet"] = Field(
        "auto",
        description="Architecture. unet: a conv autoencoder for the code, and a U-Net for denoising. auto: unet if "
        "both sides have at least 12 pixels, else mlp.",
    )
    noise: Literal["masking", "gaussian", "salt_and_pepper", "mix"] = Field(
        "mix", description="Kind of noise in training. mix: a random kind for each image."
    )
    p: float = Field(
        0.5, ge=0, le=0.95, description="Fraction of the numbers of an image changed by masking and salt_and_pepper."
    )
    sigma: float = Field(0.3, ge=0, le=2, description="Standard deviation of gaussian noise, for pixels in [0, 1].")
    vary: bool | None = Field(
        None,
        description="Draw the strength of the noise of each image between zero and p or sigma. Default: true for mix, "
        "else false.",
    )
    width: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Channels of the first convolution; doubled at each of the next two stages. Default: 16 at "
        "effort=lesson, else 32.",
    )
    reconstruction: Literal["mse", "bce"] | None = Field(
        None,
        description="mse: squared error. bce: cross-entropy, for images that are nearly black or white. Default: bce "
        "if most pixels are black or white.",
    )
    pretraining: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="Fraction of the training in which one layer after the other is trained. Needs body=mlp or linear.",
    )


class DenoisingAutoencoder(Denoises, AutoencoderBase):
    """Noise is added in training only: `encode` and `denoise` take images as they are."""

    name = "denoising_autoencoder"
    summary = "Removes noise from images."
    lecture = "Denoising autoencoders"
    Config = DenoisingAutoencoderConfig
    default_epochs = 12
    least_images = 100_000
    milliseconds = 1.05

    def __init__(self, config: DenoisingAutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        self.restorer = None
        if config.body == "unet":
            levels = 1 if min(data.height, data.width) < 48 else 2
            self.restorer = UNet(data.channels, data.channels, config.width, levels)

    @classmethod
    def resolve_config(cls, config: DenoisingAutoencoderConfig, data: DataSpec) -> DenoisingAutoencoderConfig:
        body = "unet" if config.body == "auto" and default_body(data.shape) == "conv" else config.body
        lesson = (config.effort or default_effort()) == "lesson"
        defaults = {"body": body, "width": config.width or (16 if lesson else 32)}
        config = super().resolve_config(config.model_copy(update=defaults), data)
        cls.check(config)
        return config.model_copy(update={"vary": config.noise == "mix" if config.vary is None else config.vary})

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = {"reconstruction": "mse", "width": 32 if data.count >= 20_000 else 16} if engine < 2 else {}
        return earlier | super().earlier_settings(engine, data)

    def before_training(self, train: Columns) -> None:
        """Decide `reconstruction` if the config left it open."""
        if self.config.reconstruction is None:
            chosen = "bce" if black_or_white(train) >= BLACK_OR_WHITE else "mse"
            self.config = self.config.model_copy(update={"reconstruction": chosen})

    def init_from(self, other: Family) -> None:
        if isinstance(other, DenoisingAutoencoder) and self.config.reconstruction is None:
            chosen = other.config.reconstruction or "mse"
            self.config = self.config.model_copy(update={"reconstruction": chosen})
        super().init_from(other)

    @classmethod
    def check(cls, config: DenoisingAutoencoderConfig) -> None:
        """Raises ConfigError for layer-wise training of a body that is not a stack of linear layers."""
        if config.pretraining and config.body not in ("mlp", "linear"):
            raise ConfigError(
                f"pretraining needs body=mlp or body=linear; this one is {config.body}",
                field="pretraining",
                remedy="set body=mlp",
            )

    def denoise(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images)) if self.restorer is None else self.to_pixels(self.restorer(images))

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        """Error of the decoded code of the noisy image, plus that of the U-Net; layer by layer in pre-training."""
        clean, settings = batch["images"], self.config
        noisy = self.corrupt(clean, context.generator, vary=settings.vary)
        if settings.pretraining and self.training:
            pairs = layer_pairs(self.encoder, self.decoder)
            layer = layer_at(context.progress, settings.pretraining, len(pairs))
            if layer is not None:
                return self._layer_loss(pairs, layer, clean, noisy, context), {}
        coded = self.reconstruction_term(self.encode(noisy), clean)
        if self.restorer is None:
            return coded, {}
        restored = self.image_error(self.restorer(noisy), clean).mean()
        return coded + restored, {"loss_code": coded.detach(), "loss_restored": restored.detach()}

    def _layer_loss(self, pairs, layer: int, clean: Tensor, noisy: Tensor, context: StepContext) -> Tensor:
        """Loss of one layer: the first removes the configured noise, the others remove masking noise from its codes."""

        def mask(values: Tensor) -> Tensor:
            strength = torch.full((len(values), 1), self.config.p, device=values.device)
            return masking(values, strength, context.generator)

        corrupt = mask if layer else (lambda _: noisy.flatten(1))
        output, target = layer_output(pairs, layer, clean, corrupt, self.code)
        return (losses.squared_error if layer else self.image_error)(output, target).mean()

    def corrupt(self, images: Tensor, draws: torch.Generator, vary: bool, noise: str | None = None) -> Tensor:
        """Images with the configured noise, or with another kind of noise."""
        return corrupt(images, noise or self.config.noise, self.config.p, self.config.sigma, draws, vary)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Adds PSNR before and after denoising, with a 3x3 median filter as baseline; under mix also per kind."""
        measured = super().evaluate(train, validation, context)
        noisy, denoised, median = self._psnrs(validation, context, self.config.noise)
        measured |= {"psnr_noisy": noisy, "psnr_denoised": denoised, "psnr_gain": denoised - noisy}
        measured["psnr_gain_median_filter"] = median - noisy
        for kind in BY_NAME if self.config.noise == "mix" else ():
            noisy, denoised, _ = self._psnrs(validation, context, kind)
            measured[f"psnr_gain_{kind}"] = denoised - noisy
        return measured

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Triples of an image, its noisy version and the denoised one."""
        images = probe["images"][:PAIRS]
        noisy = self.corrupt(images, context.generator, vary=False)
        return torch.stack([images, noisy, self.denoise(noisy)], 1).flatten(0, 1)

    def _psnrs(self, split: Columns, context: StepContext, noise: str) -> tuple[float, float, float]:
        """PSNR of noisy, denoised and median-filtered images over at most 2000 rows."""
        errors, count = torch.zeros(3, dtype=torch.float64), 0
        for clean in metrics.spaced_rows(split, limit=ROWS):
            clean = clean.to(self.device)
            noisy = self.corrupt(clean, context.generator, vary=False, noise=noise)
            candidates = (noisy, self.denoise(noisy), median_filter(noisy))
            errors += torch.stack([(images - clean).square().double().sum() for images in candidates]).cpu()
            count += clean.numel()
        return tuple(metrics.psnr(error / count) for error in errors.tolist())


def black_or_white(train: Columns) -> float:
    """Share of the numbers of at most 1,000 training images that are within a tenth of 0 or 1."""
    shares = [((images < 0.1) | (images > 0.9)).double().mean() for images in metrics.spaced_rows(train, limit=1000)]
    return float(torch.stack(shares).mean())
