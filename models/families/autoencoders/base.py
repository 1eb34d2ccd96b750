"""What every autoencoder shares: networks chosen by image size, a sampler over the codes, training and evaluation.

A family derives from AutoencoderBase and changes one term: what is encoded (`encode`), how the output is compared with
the image (`reconstruction_term`), or what the code is penalised for (`regularisation_term`).
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Decodes, Encodes, HasPrior, reconstruct
from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation import metrics
from models.evaluation.fidelity import sample_report
from models.families.autoencoders.gaussian_mixture import Mixture
from models.families.autoencoders.pca import PCAEncoder
from models.family import Config, OneLoss
from models.losses.reconstruction import bernoulli, squared_error
from models.nn.encoders import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder, default_body, pyramid
from models.nn.plane import Plane
from models.nn.resnet import ResNetDecoder, ResNetEncoder
from models.seeds import derive
from models.types import Batch, ConfigError, DataSpec, Metrics

CODES = {"linear": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
RANGES = {"linear": (-math.inf, math.inf), "relu": (0, math.inf), "sigmoid": (0, 1)}
CONVOLUTIONAL = ("conv", "resnet", "unet")
PAIRS = 16  # images in a snapshot
WARMED_UP = 0.25  # share of the training before which the state of a code means nothing
MAX_DEAD = 0.5  # share of the units that may be inactive on the probe
MIN_PROBE = 32  # rows below which the probe says nothing about single units
MAX_WEIGHTS = 2**25  # of the layer between the pixels and a code whose size is chosen by default
Layer = Annotated[int, Field(ge=1, le=8192)]


class AutoencoderBaseConfig(Config):
    """Fields of every autoencoder."""

    learning_rate: float = Field(4e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    latent_dim: int | None = Field(
        None, ge=1, le=4096, description="Numbers in a code. Default: chosen from the image size (32 for 28x28)."
    )
    body: Literal["auto", "linear", "mlp", "conv", "resnet"] = Field(
        "auto",
        description="Architecture. resnet: conv with residual blocks. auto: conv if both sides have at least 12 "
        "pixels, else mlp.",
    )
    width: int | None = Field(
        None,
        ge=1,
        le=512,
        description="Channels of the first convolution; doubled at each of the next two stages. Default: 32 from "
        "20,000 training images, above effort=lesson; else 16.",
    )
    hidden: tuple[Layer, ...] | None = Field(
        None,
        max_length=8,
        description="Sizes of the hidden layers of mlp, from the image to the code. Default: chosen from the image "
        "size.",
    )
    keep: Literal["last", "best"] = Field(
        "best", description="Weights to publish: the last ones, or those with the lowest validation loss."
    )
    sampler: Literal["mixture", "gaussian", "prior"] = Field(
        "mixture",
        description="Distribution of the codes of samples; a request may name another. mixture: Gaussians fitted to "
        "the codes after training. gaussian: one. prior: the standard normal distribution.",
    )
    components: int | None = Field(
        None,
        ge=0,
        le=200,
        description="Gaussians in the mixture; 0: the model draws no samples. Default: one for 120 training images, 10 "
        "to 100.",
    )
    code: Literal["linear", "relu", "sigmoid"] = Field("linear", description="Activation of the code.")


class AutoencoderBase(Encodes, Decodes, HasPrior, OneLoss):
    """An encoder, a decoder, and a Gaussian mixture fitted to the codes after training, from which samples are drawn.

    `loss` is the objective in training and, in eval mode on the validation probe, the validation loss.
    """

    Config = AutoencoderBaseConfig
    default_batch = 32
    default_epochs = 20
    milliseconds = 0.4
    warm_up = 50
    outputs: ClassVar[int] = 1
    """Numbers the encoder gives for each dimension of the code."""

    def __init__(self, config: AutoencoderBaseConfig, data: DataSpec):
        super().__init__(config, data)
        self.latent_dim = config.latent_dim
        self.encoder, self.decoder = self.build_networks()
        self.code = CODES[config.code]()
        components = 1 if config.sampler == "gaussian" else max(1, config.components)
        self.mixture = Mixture(config.latent_dim, components)

    @classmethod
    def resolve_config(cls, config: AutoencoderBaseConfig, data: DataSpec) -> AutoencoderBaseConfig:
        config = super().resolve_config(config, data)
        body = default_body(data.shape) if config.body == "auto" else config.body
        if body in CONVOLUTIONAL and len(pyramid(data.height, data.width)) == 1:
            raise ConfigError(
                f"body={body} needs images with a side of at least 5 pixels; these are {data.width}x{data.height}",
                field="body",
                remedy="use body=mlp or body=linear",
            )
        latent_dim = config.latent_dim or default_latents(data)
        hidden = config.hidden if config.hidden is not None else default_hidden(data, latent_dim)
        width = config.width or (32 if data.count >= 20_000 and config.effort != "lesson" else 16)
        resolved = {"body": body, "latent_dim": latent_dim, "hidden": hidden, "width": width}
        components = default_components(data.count) if config.components is None else config.components
        return config.model_copy(update=resolved | {"components": components})

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        return ({"components": 10} if engine < 2 else {}) | super().earlier_settings(engine, data)

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        """A new encoder, (b, c, h, w) -> (b, outputs * latent_dim), and decoder, (b, latent_dim) -> (b, c, h, w)."""
        encoder = build_encoder(self.config, self.data.shape, self.config.latent_dim * self.outputs)
        return encoder, build_decoder(self.config, self.data.shape)

    # Codes and images

    def encode(self, images: Tensor) -> Tensor:
        return self.code(self.encoder(images))

    def deterministic_encoder(self) -> nn.Module:
        """A copy of the encoder without the outputs that are not the code: (b, c, h, w) -> (b, latent_dim)."""
        return copy.deepcopy(self.encoder)

    def decoder_output(self, codes: Tensor) -> Tensor:
        """(b, latent_dim) -> (b, c, h, w): what the decoder gives, before `to_pixels`."""
        return self.decoder(codes)

    def decode(self, latents: Tensor) -> Tensor:
        return self.to_pixels(self.decoder_output(latents))

    @property
    def gives_logits(self) -> bool:
        """The decoder gives logits of pixels (cross-entropy), not pixels."""
        return getattr(self.config, "reconstruction", "mse") == "bce"

    def to_pixels(self, output: Tensor) -> Tensor:
        """Decoder output -> images in [0, 1]."""
        return output.sigmoid() if self.gives_logits else output.clamp(0, 1)

    @property
    def samplers(self) -> tuple[str, ...]:
        if not self.config.components:
            return ()
        return ("gaussian", "prior") if self.config.sampler == "gaussian" else ("mixture", "gaussian", "prior")

    def draw(self, noise: Tensor, uniform: Tensor, *labels: Tensor) -> Tensor:
        return self.draw_from(self.config.sampler, noise, uniform, *labels)

    def draw_from(self, sampler: str, noise: Tensor, uniform: Tensor, *labels: Tensor) -> Tensor:
        if sampler == "gaussian" and self.config.sampler != "gaussian":
            return self.project_to_code_space(self.mixture.draw_gaussian(noise))
        return self.project_to_code_space(noise if sampler == "prior" else self.mixture.draw(noise, uniform))

    def project_to_code_space(self, latents: Tensor) -> Tensor:
        return latents.clamp(*RANGES[self.config.code])

    def plane(self, sampler: str | None = None) -> Plane:
        """The plane of greatest variance of the training codes, from the axes of the mixture.

        For the prior: standard normal codes along the same axes.
        """
        if sampler == "prior" and self.latent_dim <= 2:
            return Plane.standard(self.latent_dim, self.device)
        plane = Plane.scaled(self.mixture.centre, self.mixture.axes)
        if sampler != "prior":
            return plane
        return replace(plane, centre=torch.zeros_like(plane.centre), spread=torch.ones_like(plane.spread))

    # The objective

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        """Reconstruction plus regularisation, averaged over the batch."""
        images = batch["images"]
        codes = self.encode(images)
        error = self.reconstruction_term(codes, images)
        penalty, measured = self.regularisation_term(codes, images, context.generator)
        return error + penalty, {"reconstruction": error.detach(), **measured}

    def reconstruction_term(self, codes: Tensor, images: Tensor) -> Tensor:
        """(): the error of decoded codes, summed over the numbers of an image and averaged over the batch."""
        return self.image_error(self.decoder_output(codes), images).mean()

    def image_error(self, output: Tensor, images: Tensor) -> Tensor:
        """(b,): squared error, or cross-entropy under `reconstruction: bce`, summed over the numbers of an image."""
        return (bernoulli if self.gives_logits else squared_error)(output, images)

    def regularisation_term(
        self, codes: Tensor, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor | float, Metrics]:
        """What is added to the reconstruction term, with its weight, and scalars to report."""
        return 0.0, {}

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        """`loss` in eval mode, with the same random draws at every inspection, so that the values compare."""
        generator = torch.Generator(self.device).manual_seed(derive(context.seed, "held out"))
        return self.loss(probe, replace(context, generator=generator))[0].detach()

    # Evaluation

    def after_training(self, train: Columns, context: StepContext) -> None:
        rows = min(metrics.ROWS, metrics.NUMBERS // self.latent_dim)
        self.mixture.fit(metrics.gather(train, self.encode, self.device, rows), context.generator)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Reconstruction error, with PCA of the same code size and the mean image as baselines; accuracy of nearest
        neighbours in code space if there are labels; sample quality (models/evaluation/fidelity.py).
        """
        error = reconstruction_mse(self, validation)
        measured = {"mse": error, "psnr": metrics.psnr(error)}
        measured["mse_pca"] = metrics.pca_mse(train, validation, self.pca_rank(validation))
        measured["mse_mean_image"] = metrics.mean_image_mse(train, validation)
        measured |= self._knn_accuracy(train, validation)
        return measured | (sample_report(self, train, validation, context) if self.samplers else {})

    def pca_rank(self, validation: Columns) -> int:
        """Number of axes that PCA uses as the baseline."""
        return self.latent_dim

    def _knn_accuracy(self, train: Columns, validation: Columns) -> dict[str, float]:
        if "labels" not in train or "labels" not in validation:
            return {}
        labels = torch.cat(list(metrics.spaced_rows(train, "labels", 5000)))
        truth = torch.cat(list(metrics.spaced_rows(validation, "labels", 1000)))
        codes = [
            metrics.gather(split, self.encode, self.device, rows) for split, rows in ((train, 5000), (validation, 1000))
        ]
        return {"knn_accuracy": metrics.knn_accuracy(codes[0], labels, codes[1], truth)}

    def diagnose(self, inspection: Inspection) -> Iterator[Alarm]:
        """Units of a ReLU code that are inactive for the whole probe."""
        images = inspection.probe["images"]
        if self.config.code != "relu" or inspection.context.progress < WARMED_UP or len(images) < MIN_PROBE:
            return
        dead = int((self.encode(images) <= 0).all(0).sum())
        if dead > MAX_DEAD * self.latent_dim:
            yield dead_units(dead, self.latent_dim, f"none of {len(images)} validation images")

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Pairs of an image and its reconstruction."""
        images = probe["images"][:PAIRS]
        return torch.stack([images, reconstruct(self, images)[1]], 1).flatten(0, 1)


def dead_units(dead: int, units: int, inactive_for: str) -> Alarm:
    return Alarm(
        "dead-units",
        f"{dead} of {units} units are active for {inactive_for}.",
        "Lower weight or learning_rate, set revive_after, or ask for fewer units with latent_dim.",
        {"dead_units": dead, "units": units},
    )


def reconstruction_mse(model: AutoencoderBase, split: Columns) -> float:
    """Mean squared error per pixel of decode(encode(x)) over at most 10 000 rows."""
    total, count = 0.0, 0
    for images in metrics.spaced_rows(split):
        images = images.to(model.device)
        error = (reconstruct(model, images)[1] - images).square().double().sum()
        total, count = total + float(error), count + images.numel()
    return total / count


def default_components(count: int) -> int:
    """Gaussians in the mixture for `count` training images: one for 120 of them, but 10 to 100; fewer below 200."""
    return max(1, min(100, max(min(10, count // 20), count // 120)))


def default_latents(data: DataSpec) -> int:
    """The power of two nearest to the square root of the number of pixels, from 8 to 256: 32 for 28x28."""
    return min(256, max(8, 2 ** round(math.log2(math.sqrt(data.pixels)))))


def default_overcomplete(data: DataSpec, most: int) -> int:
    """The power of two above the number of pixels, at most `most`, with at most MAX_WEIGHTS weights in its layer.

    Otherwise 2,048 units of 256x256 colour images would have 800 million weights: 13 GB in training.
    """
    affordable = max(64, 2 ** int(math.log2(MAX_WEIGHTS / data.pixels)))
    return min(most, affordable, 2 ** (data.pixels - 1).bit_length())


def default_hidden(data: DataSpec, latent_dim: int) -> tuple[int, ...]:
    """Two layers that narrow from the image to the code."""
    first = min(512, max(128, 2 ** math.floor(math.log2(data.pixels))))
    return first, max(first // 2, min(512, latent_dim))


def build_encoder(config: AutoencoderBaseConfig, shape: tuple[int, int, int], out: int) -> nn.Module:
    """The network of `config` from images (b, c, h, w) to (b, out)."""
    if config.body in CONVOLUTIONAL:
        encoder = (ResNetEncoder if config.body == "resnet" else ConvEncoder)(shape, out, config.width)
    else:
        encoder = MLPEncoder(shape, out, config.hidden if config.body == "mlp" else ())
    return PCAEncoder(encoder, shape, out) if getattr(config, "linear_path", None) == "pca" else encoder


def build_decoder(config: AutoencoderBaseConfig, shape: tuple[int, int, int]) -> nn.Module:
    """Its mirror, from codes to (b, c, h, w) without a final activation."""
    if config.body in CONVOLUTIONAL:
        return (ResNetDecoder if config.body == "resnet" else ConvDecoder)(config.latent_dim, shape, config.width)
    return MLPDecoder(config.latent_dim, shape, config.hidden[::-1] if config.body == "mlp" else ())
