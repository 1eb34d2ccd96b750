"""A GAN that learns images of 4x4 pixels first and gains a level of twice the size at a time (Karras et al. 2018)."""

import copy
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.families.gans.base import GANBase
from models.families.gans.config import GANConfig, fill_training_settings, rate_for, training_conflicts
from models.families.gans.layers import double, halve, latents_of, strides
from models.families.gans.progressive_networks import (
    GrowingDiscriminator,
    GrowingGenerator,
    GrowingNetwork,
    blend,
    level_widths,
)
from models.family import LONGER_CPU_SECONDS, Family
from models.nn.encoders import pyramid
from models.seeds import derive
from models.types import Batch, ConfigError, DataSpec, Metrics

GROWTH_SHARE = 0.6  # share of the training until the last level is in, by default


class ProgressiveGANConfig(GANConfig):
    """A level fades in over `fade_images`, then trains for `stabilise_images`; the last one trains to the end."""

    widest: int = Field(
        128, ge=4, le=2048, description="Maximum number of channels of a level; the finest level has `width`."
    )
    fade_images: int | None = Field(
        None,
        ge=0,
        le=10**8,
        description="Images over which a new level fades in. Default: chosen from the training length.",
    )
    stabilise_images: int | None = Field(
        None,
        ge=0,
        le=10**8,
        description="Images that a level trains before the next fades in. Default: chosen from the training length.",
    )
    low_pass: bool = Field(
        True,
        description="Filter G's features with [1, 3, 3, 1] where their size doubles; without it images show a lattice.",
    )


class ProgressiveGAN(GANBase):
    """Level and alpha follow from the count of images shown; alpha is also a buffer, which a published model keeps."""

    name = "progressive_gan"
    summary = "Generates new images; grows from about 4x4 pixels to the full size during training."
    lecture = "Progressive growing of GANs"
    Config = ProgressiveGANConfig
    milliseconds = 5.5
    cpu_seconds = LONGER_CPU_SECONDS
    spherical = True
    rewinds = False  # an earlier generator may have fewer layers
    config: ProgressiveGANConfig

    def __init__(self, config: ProgressiveGANConfig, data: DataSpec):
        super().__init__(config, data)
        # seeds the weights of grown layers, so that a resumed training grows as an unbroken one
        self.register_buffer("birth", torch.randint(2**62, ()))

    @classmethod
    def resolve_config(cls, config: ProgressiveGANConfig, data: DataSpec) -> ProgressiveGANConfig:
        config = super().resolve_config(config, data)
        for problem in training_conflicts(config):
            raise problem
        preset = {"loss": "non_saturating", "r1": 1.0, "critic_steps": 1, "drift": 0.001}
        preset |= {"learning_rate": rate_for(config, 6e-3, 1e-3)}
        preset |= {"beta1": 0.0, "beta2": 0.99, "latent_dim": 128, "width": 32 if data.count >= 20_000 else 16}
        update = fill_training_settings(config, data.count, preset)
        growths = len(pyramid(data.height, data.width)) - 1
        phase = int(GROWTH_SHARE * config.images / max(1, 2 * growths))
        fade = phase if config.fade_images is None else config.fade_images
        stabilise = phase if config.stabilise_images is None else config.stabilise_images
        if growths * (fade + stabilise) > config.images - config.batch_size:
            raise ConfigError(
                f"images is {config.images}, but the full size is reached only after {growths * (fade + stabilise)} "
                f"images ({growths} x (fade_images + stabilise_images)); at least one batch of "
                f"{config.batch_size} must follow",
                field="images",
                remedy="use more images, or lower fade_images and stabilise_images",
            )
        return config.model_copy(update=update | {"fade_images": fade, "stabilise_images": stabilise})

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = {"loss": "wasserstein", "learning_rate": 1e-3, "low_pass": False}
        return (earlier if engine < 2 else {}) | super().earlier_settings(engine, data)

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        sizes = pyramid(self.data.height, self.data.width)[::-1]
        channels = level_widths(len(sizes), self.config.width, self.config.widest)
        colours = self.data.channels
        return (
            GrowingGenerator(self.config.latent_dim, sizes, channels, colours, self.config.low_pass),
            GrowingDiscriminator(sizes, channels, colours),
        )

    # Growth

    def level_and_alpha(self, images: int) -> tuple[int, float]:
        """The newest level after `images` images, and its alpha: 0 as it begins to fade in, 1 from then on."""
        fade, stabilise = self.config.fade_images, self.config.stabilise_images
        past = images - stabilise
        growths = len(self.generator.sizes) - 1
        if past < 0 or not growths:
            return 0, 1.0
        length = fade + stabilise
        level = min(growths, past // length + 1) if length else growths
        into = past - (level - 1) * length
        return level, min(1.0, into / fade) if fade else 1.0

    def relative_cost(self, images: int) -> float:
        """The number of levels: each has about as many operations, since channels double where sides halve."""
        return 1.0 + self.level_and_alpha(images)[0]

    def grow_to(self, images: int) -> None:
        level, alpha = self.level_and_alpha(images)
        while self.generator.level < level:
            self._grow()
        for network in (self.generator, self.discriminator, self.ema.module):
            network.fade(alpha)

    def _grow(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(int(self.birth), "growth", self.generator.level))
            for network in (self.generator, self.discriminator):
                network.grow()
                network.to(self.birth.device, memory_format=self.layout)
        averaged: GrowingNetwork = self.ema.module
        averaged.blocks.append(copy.deepcopy(self.generator.blocks[-1]))
        averaged.heads.append(copy.deepcopy(self.generator.heads[-1]))
        averaged.requires_grad_(False).eval()

    def init_from(self, other: Family) -> None:
        raise ConfigError(
            "init_from is not supported: a progressive GAN starts at the smallest size, and a trained one has grown",
            field="init_from",
            remedy="continue a training with fork_from",
        )

    # Training

    def to_latents(self, noise: Tensor) -> Tensor:
        return latents_of(noise, "sphere")

    def real_images(self, batch: Batch) -> Tensor:
        """Real images at the size of the present level, blended with the level before as the fakes are."""
        sizes, level = self.generator.sizes, self.generator.level
        images = self.to_level(super().real_images(batch))
        if not self.generator.fading:
            return images
        factors = strides(sizes[level - 1], sizes[level])
        return blend(double(halve(images, factors), sizes[level]), images, self.generator.alpha)

    def to_level(self, images: Tensor) -> Tensor:
        """Images of full size at the size of the present level."""
        sizes = self.generator.sizes
        for above in range(len(sizes) - 1, self.generator.level, -1):
            images = halve(images, strides(sizes[above - 1], sizes[above]))
        return images

    def step(self, batch: Batch, optimisers: dict, context: StepContext) -> Metrics:
        metrics = super().step(batch, optimisers, context)
        side = torch.tensor(float(max(self.generator.sizes[self.generator.level])))
        return metrics | {"alpha": self.generator.alpha.clone(), "resolution": side}

    def d_logits(self, images: Tensor) -> Tensor:
        return super().d_logits(self.to_level(images))

    def to_unit_range(self, images: Tensor) -> Tensor:
        """In [0, 1] and at full size, whatever the level."""
        for size in self.generator.sizes[self.generator.level + 1 :]:
            images = double(images, size)
        return super().to_unit_range(images)
