"""What every autoencoder shares: a body for the size of the images, codes, a mixture over the codes to sample from, and
the measures of a reconstruction. The families add what they descend.
"""

import copy
import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Decodes, Encodes, HasPrior
from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection
from models.evaluation import metrics
from models.evaluation.fidelity import sample_report
from models.evaluation.reconstruct import redraw
from models.families.autoencoders.gaussian_mixture import Mixture
from models.families.autoencoders.pca import OverAxes
from models.family import Config, OneLoss
from models.nn.encoders import ConvDecoder, ConvEncoder, FlatDecoder, FlatEncoder, default_body, pyramid
from models.nn.plane import Plane
from models.seeds import derive
from models.types import Batch, ConfigError, DataSpec

CODES = {"linear": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}
RANGES = {"linear": (-math.inf, math.inf), "relu": (0, math.inf), "sigmoid": (0, 1)}
CONVOLUTIONAL = ("conv", "unet")
PAIRS = 16
SETTLED = 0.25
"""Share of a run after which a code says something about the model."""
DEAD, FEW = 0.5, 32
"""Share of units that may be inactive on a probe, which says little about units when it has fewer rows."""
Layer = Annotated[int, Field(ge=1, le=8192)]


class CodingConfig(Config):
    """Fields of every autoencoder."""

    learning_rate: float = Field(4e-3, gt=0, le=1, description="Step size of Adam after the warm-up.")
    latent_dim: int | None = Field(None, ge=1, le=4096, description="Numbers in a code. Empty: from the image size.")
    body: Literal["auto", "linear", "mlp", "conv"] = Field(
        "auto", description="Kind of network. auto: conv from 12 pixels a side, mlp below."
    )
    width: int | None = Field(
        None, ge=1, le=512, description="Channels of the first stage of conv, doubled twice. Empty: from the data."
    )
    hidden: tuple[Layer, ...] | None = Field(
        None, max_length=8, description="Sizes of the hidden layers of mlp, from the image to the code."
    )
    keep: Literal["last", "best"] = Field(
        "best", description="Which weights to publish: the last, or those of the least loss on images held out."
    )
    sampler: Literal["mixture", "gaussian", "prior"] = Field(
        "mixture",
        description="Where samples come from: ten normal distributions or a single one, fitted to the codes after "
        "training, or the standard normal.",
    )
    code: Literal["linear", "relu", "sigmoid"] = Field("linear", description="Activation of the code.")


class Coding(Encodes, Decodes, HasPrior, OneLoss):
    """An encoder, a decoder, and a mixture over the codes. `decode` shows the decoder's output through `pixels`."""

    Config = CodingConfig
    default_batch = 32
    default_epochs = 20
    warm_up = 50
    outputs: ClassVar[int] = 1
    """Numbers the encoder gives for each dimension of the code."""

    def __init__(self, config: CodingConfig, data: DataSpec):
        super().__init__(config, data)
        self.latent_dim = config.latent_dim
        self.encoder = encoder(config, data.shape, config.latent_dim * self.outputs)
        self.decoder = decoder(config, data.shape)
        self.code = CODES[config.code]()
        self.mixture = Mixture(config.latent_dim, 1 if config.sampler == "gaussian" else 10)

    @classmethod
    def resolve_config(cls, config: CodingConfig, data: DataSpec) -> CodingConfig:
        config = super().resolve_config(config, data)
        body = default_body(data.shape) if config.body == "auto" else config.body
        if body in CONVOLUTIONAL and len(pyramid(data.height, data.width)) == 1:
            raise ConfigError(
                f"a convolutional body needs a side of 5 pixels or more; the images are {data.width}x{data.height}",
                field="body",
                remedy="use body mlp or linear",
            )
        latent_dim = config.latent_dim or default_latents(data)
        hidden = config.hidden if config.hidden is not None else default_hidden(data, latent_dim)
        width = config.width or (32 if data.count >= 20_000 else 16)
        return config.model_copy(update={"body": body, "latent_dim": latent_dim, "hidden": hidden, "width": width})

    def encode(self, images: Tensor) -> Tensor:
        return self.code(self.encoder(images))

    def code_encoder(self) -> nn.Module:
        """A copy of the part of the encoder that gives one number for each dimension of the code."""
        return copy.deepcopy(self.encoder)

    def decode(self, latents: Tensor) -> Tensor:
        return self.pixels(self.decoder(latents))

    def pixels(self, output: Tensor) -> Tensor:
        """Decoder output -> images in [0, 1]."""
        return output.clamp(0, 1)

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return self.project_to_code_space(
            noise if self.config.sampler == "prior" else self.mixture.draw(noise, uniform)
        )

    def project_to_code_space(self, latents: Tensor) -> Tensor:
        return latents.clamp(*RANGES[self.config.code])

    def plane(self) -> Plane:
        """Of the training codes, as the mixture knows them."""
        return Plane.scaled(self.mixture.centre, self.mixture.axes)

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.mixture.fit(metrics.gather(train, self.encode, self.device), context.generator)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Reconstruction beside PCA with the same numbers in its code and beside the mean image; kNN where labelled."""
        error = reconstruction_mse(self, validation)
        found = {"mse": error, "psnr": metrics.psnr(error)}
        found["mse_pca"] = metrics.pca_mse(train, validation, self.fair_axes(validation))
        found["mse_mean_image"] = metrics.mean_image_mse(train, validation)
        return found | self._neighbours(train, validation) | sample_report(self, train, validation, context)

    def fair_axes(self, validation: Columns) -> int:
        """How many axes PCA may use to be compared with."""
        return self.latent_dim

    def validation_loss(self, probe: Batch, context: StepContext) -> Tensor:
        """The squared error per number of a reconstruction."""
        return (self.decode(self.encode(probe["images"])) - probe["images"]).square().mean()

    def diagnose(self, look: Inspection) -> Iterator[Alarm]:
        """Units of a rectified code that are never active."""
        if self.config.code != "relu" or look.context.progress < SETTLED or len(look.probe["images"]) < FEW:
            return
        dead = int((self.encode(look.probe["images"]) <= 0).all(0).sum())
        if dead > DEAD * self.latent_dim:
            yield dead_units(dead, self.latent_dim, f"none of {len(look.probe['images'])} validation images")

    def fixed(self, context: StepContext) -> torch.Generator:
        """Draws that are the same at every look, so that its losses compare."""
        return torch.Generator(self.device).manual_seed(derive(context.seed, "held out"))

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Pairs of an image and its reconstruction."""
        images = probe["images"][:PAIRS]
        return torch.stack([images, redraw(self, images)[1]], 1).flatten(0, 1)

    def _neighbours(self, train: Columns, validation: Columns) -> dict[str, float]:
        if "labels" not in train or "labels" not in validation:
            return {}
        labels = torch.cat(list(metrics.spread(train, "labels", 5000)))
        truth = torch.cat(list(metrics.spread(validation, "labels", 1000)))
        codes = [
            metrics.gather(split, self.encode, self.device, rows) for split, rows in ((train, 5000), (validation, 1000))
        ]
        return {"knn_accuracy": metrics.knn_accuracy(codes[0], labels, codes[1], truth)}


def dead_units(dead: int, units: int, never: str) -> Alarm:
    return Alarm(
        "dead-units",
        f"{dead} of {units} units are active for {never}.",
        "Lower weight or learning_rate, set revive_after, or ask for fewer units with latent_dim.",
        {"dead_units": dead, "units": units},
    )


def reconstruction_mse(model: Coding, split: Columns) -> float:
    """Mean squared error per pixel of decode(encode(x)) over at most 10 000 rows."""
    total, count = 0.0, 0
    for images in metrics.spread(split):
        images = images.to(model.device)
        error = (redraw(model, images)[1] - images).square().double().sum()
        total, count = total + float(error), count + images.numel()
    return total / count


def default_latents(data: DataSpec) -> int:
    """The power of two nearest to the root of the pixels, from 8 to 256: 32 for 28x28."""
    return min(256, max(8, 2 ** round(math.log2(math.sqrt(data.pixels)))))


AFFORDABLE = 2**25
"""Weights of one layer between the pixels and the units of a code that is chosen by default."""


def default_overcomplete(data: DataSpec, most: int) -> int:
    """The power of two above the pixels, at most `most`: more units than pixels where that is affordable.

    2,048 units of 256x256 colour images would be 800 million weights, 13 GB while they learn.
    """
    affordable = max(64, 2 ** int(math.log2(AFFORDABLE / data.pixels)))
    return min(most, affordable, 2 ** (data.pixels - 1).bit_length())


def default_hidden(data: DataSpec, latent_dim: int) -> tuple[int, ...]:
    """Two layers that narrow from the image to the code."""
    first = min(512, max(128, 2 ** math.floor(math.log2(data.pixels))))
    return first, max(first // 2, min(512, latent_dim))


def encoder(config: CodingConfig, shape: tuple[int, int, int], out: int) -> nn.Module:
    """The network from images (b, c, h, w) to (b, out) that the config asks for."""
    if config.body in CONVOLUTIONAL:
        found = ConvEncoder(shape, out, config.width)
    else:
        found = FlatEncoder(shape, out, config.hidden if config.body == "mlp" else ())
    return OverAxes(found, shape, out) if getattr(config, "linear_path", None) == "pca" else found


def decoder(config: CodingConfig, shape: tuple[int, int, int]) -> nn.Module:
    """Its mirror, from codes to (b, c, h, w) without a final activation."""
    if config.body in CONVOLUTIONAL:
        return ConvDecoder(config.latent_dim, shape, config.width)
    return FlatDecoder(config.latent_dim, shape, config.hidden[::-1] if config.body == "mlp" else ())
