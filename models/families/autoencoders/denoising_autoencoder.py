"""The denoising autoencoder (Vincent et al. 2008): a code that is worth something because noise does not move it."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Denoises
from models.context import StepContext
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.base import PAIRS, Coding, CodingConfig
from models.families.autoencoders.corruption import BY_NAME, corrupt, masking, median_filter
from models.families.autoencoders.layerwise import layer_at, layer_output, layer_pairs
from models.losses import reconstruction as losses
from models.nn.encoders import default_body
from models.nn.unet import UNet
from models.types import Batch, ConfigError, DataSpec, Metrics

ROWS = 2000


class DenoisingAutoencoderConfig(CodingConfig):
    """The loss compares with the clean image, summed over its numbers and averaged over the batch."""

    body: Literal["auto", "linear", "mlp", "conv", "unet"] = Field(
        "auto",
        description="unet: a conv autoencoder for the code, and a U-shaped network for denoising. auto: unet from 12 "
        "pixels a side, mlp below.",
    )
    noise: Literal["masking", "gaussian", "salt_and_pepper", "mix"] = Field(
        "mix", description="Kind of noise, drawn anew in every update; mix draws a kind for each image."
    )
    p: float = Field(0.5, ge=0, le=0.95, description="Share of the numbers hit by masking and salt_and_pepper.")
    sigma: float = Field(0.3, ge=0, le=2, description="Standard deviation of gaussian noise; pixels are in [0, 1].")
    vary: bool | None = Field(
        None, description="Draw each image's strength between zero and p or sigma. Empty: yes for mix, else no."
    )
    reconstruction: Literal["mse", "bce"] = Field(
        "mse", description="mse: squared error. bce: cross-entropy, for images that are nearly black or white."
    )
    pretraining: float = Field(
        0.0,
        ge=0,
        le=0.9,
        description="Share of the training spent on one layer after the other, for body mlp or linear.",
    )


class DenoisingAutoencoder(Denoises, Coding):
    """Noise is added in training alone: `encode` and `denoise` take images as they are."""

    name = "denoising_autoencoder"
    summary = "Removes noise from images."
    lecture = "Denoising autoencoders"
    Config = DenoisingAutoencoderConfig
    default_epochs = 12

    def __init__(self, config: DenoisingAutoencoderConfig, data: DataSpec):
        super().__init__(config, data)
        self.restorer = None
        if config.body == "unet":
            levels = 1 if min(data.height, data.width) < 48 else 2
            self.restorer = UNet(data.channels, data.channels, config.width, levels)

    @classmethod
    def resolve_config(cls, config: DenoisingAutoencoderConfig, data: DataSpec) -> DenoisingAutoencoderConfig:
        body = "unet" if config.body == "auto" and default_body(data.shape) == "conv" else config.body
        config = super().resolve_config(config.model_copy(update={"body": body}), data)
        cls.check(config)
        return config.model_copy(update={"vary": config.noise == "mix" if config.vary is None else config.vary})

    @classmethod
    def check(cls, config: DenoisingAutoencoderConfig) -> None:
        """Raises ConfigError for pre-training of a body that is no stack of layers."""
        if config.pretraining and config.body not in ("mlp", "linear"):
            raise ConfigError(
                f"layers are trained one after the other in a body mlp or linear; this one is {config.body}",
                field="pretraining",
                remedy="set body to mlp",
            )

    def denoise(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images)) if self.restorer is None else self.pixels(self.restorer(images))

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        clean, settings = batch["images"], self.config
        noisy = self.corrupt(clean, context.generator, vary=settings.vary)
        distance = losses.bernoulli if settings.reconstruction == "bce" else losses.squared_error
        if settings.pretraining:
            pairs = layer_pairs(self.encoder, self.decoder)
            layer = layer_at(context.progress, settings.pretraining, len(pairs))
            if layer is not None:
                return self._layer_loss(pairs, layer, clean, noisy, distance, context), {}
        coded = distance(self.decoder(self.encode(noisy)), clean).mean()
        if self.restorer is None:
            return coded, {}
        restored = distance(self.restorer(noisy), clean).mean()
        return coded + restored, {"loss_code": coded.detach(), "loss_restored": restored.detach()}

    def _layer_loss(self, pairs, layer: int, clean: Tensor, noisy: Tensor, distance, context: StepContext) -> Tensor:
        """Of one layer: the lowest undoes the configured noise, those above undo masking of their input."""

        def mask(values: Tensor) -> Tensor:
            strength = torch.full((len(values), 1), self.config.p, device=values.device)
            return masking(values, strength, context.generator)

        corrupt = mask if layer else (lambda _: noisy.flatten(1))
        output, target = layer_output(pairs, layer, clean, corrupt, self.code)
        return (distance if layer == 0 else losses.squared_error)(output, target).mean()

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        """What is descended once all layers learn together, under the same noise at every look."""
        clean, settings = probe["images"], self.config
        noisy = self.corrupt(clean, self.fixed(context), vary=settings.vary)
        distance = losses.bernoulli if settings.reconstruction == "bce" else losses.squared_error
        coded = distance(self.decoder(self.encode(noisy)), clean).mean()
        return coded if self.restorer is None else coded + distance(self.restorer(noisy), clean).mean()

    def pixels(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.config.reconstruction == "bce" else output.clamp(0, 1)

    def corrupt(self, images: Tensor, draws: torch.Generator, vary: bool, noise: str | None = None) -> Tensor:
        """Images with the configured noise, or another kind of it."""
        return corrupt(images, noise or self.config.noise, self.config.p, self.config.sigma, draws, vary)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """PSNR before and after at full strength, beside a 3x3 median filter; for mix also the gain for each kind."""
        found = super().evaluate(train, validation, context)
        noisy, denoised, median = self._psnrs(validation, context, self.config.noise)
        found |= {"psnr_noisy": noisy, "psnr_denoised": denoised, "psnr_gain": denoised - noisy}
        found["psnr_gain_median_filter"] = median - noisy
        for kind in BY_NAME if self.config.noise == "mix" else ():
            noisy, denoised, _ = self._psnrs(validation, context, kind)
            found[f"psnr_gain_{kind}"] = denoised - noisy
        return found

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Triples of an image, its noisy version and what is made of that."""
        images = probe["images"][:PAIRS]
        noisy = self.corrupt(images, context.generator, vary=False)
        return torch.stack([images, noisy, self.denoise(noisy)], 1).flatten(0, 1)

    def _psnrs(self, split: Columns, context: StepContext, noise: str) -> tuple[float, float, float]:
        """PSNR of noisy, denoised and median-filtered images over at most 2000 rows."""
        errors, count = torch.zeros(3, dtype=torch.float64), 0
        for clean in metrics.spread(split, limit=ROWS):
            clean = clean.to(self.device)
            noisy = self.corrupt(clean, context.generator, vary=False, noise=noise)
            answers = (noisy, self.denoise(noisy), median_filter(noisy))
            errors += torch.stack([(answer - clean).square().double().sum() for answer in answers]).cpu()
            count += clean.numel()
        return tuple(metrics.psnr(error / count) for error in errors.tolist())
