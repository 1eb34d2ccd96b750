"""A GAN that learns small images first and grows to large ones (Karras et al. 2018)."""

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.families.gans.config import GameConfig, game_clashes, resolve_game
from models.families.gans.layers import double, halve, latents_of, strides
from models.families.gans.progressive_networks import (
    Growing,
    GrowingDiscriminator,
    GrowingGenerator,
    blend,
    level_widths,
)
from models.families.gans.sampling import Generative
from models.family import Family
from models.nn.encoders import pyramid
from models.seeds import derive
from models.types import Batch, ConfigError, DataSpec, Metrics

EARLY = 0.6  # share of the run before the last level is alone, where nobody says


class ProgressiveGANConfig(GameConfig):
    """Every level fades in over `fade_images`, then trains for `stabilise_images`; the last one to the end."""

    widest: int = Field(128, ge=4, le=2048, description="Most channels of a level; the finest has `width`.")
    fade_images: int | None = Field(
        None, ge=0, le=10**8, description="Images over which a level fades in; empty: from the length of the run."
    )
    stabilise_images: int | None = Field(
        None, ge=0, le=10**8, description="Images a level trains before the next; empty: from the length of the run."
    )


class ProgressiveGAN(Generative):
    """Level and alpha follow from the count of images; alpha is also a buffer, so a published model needs no clock."""

    name = "progressive_gan"
    summary = "Draws new images; grows from 4x4 pixels to the full size while it trains."
    lecture = "Progressive growing of GANs"
    Config = ProgressiveGANConfig
    spherical = True
    rewinds = False  # an earlier generator may have had fewer layers
    config: ProgressiveGANConfig

    def __init__(self, config: ProgressiveGANConfig, data: DataSpec):
        super().__init__(config, data)
        # growth draws its weights from here, so that a resumed run grows as the undisturbed one
        self.register_buffer("birth", torch.randint(2**62, ()))

    @classmethod
    def resolve_config(cls, config: ProgressiveGANConfig, data: DataSpec) -> ProgressiveGANConfig:
        config = super().resolve_config(config, data)
        for problem in game_clashes(config):
            raise problem
        preset = {"loss": "wasserstein", "r1": 1.0, "critic_steps": 1, "drift": 0.001, "learning_rate": 1e-3}
        preset |= {"beta1": 0.0, "beta2": 0.99, "latent_dim": 128, "width": 32 if data.count >= 20_000 else 16}
        update = resolve_game(config, data.count, preset)
        growths = len(pyramid(data.height, data.width)) - 1
        phase = int(EARLY * config.images / max(1, 2 * growths))
        fade = phase if config.fade_images is None else config.fade_images
        stabilise = phase if config.stabilise_images is None else config.stabilise_images
        if growths * (fade + stabilise) > config.images - config.batch_size:
            raise ConfigError(
                f"the full size is reached after {growths * (fade + stabilise)} images, and must be so a batch of "
                f"{config.batch_size} before training ends at {config.images}",
                field="images",
                remedy="ask for more images, or lower fade_images and stabilise_images",
            )
        return config.model_copy(update=update | {"fade_images": fade, "stabilise_images": stabilise})

    def players(self) -> tuple[nn.Module, nn.Module]:
        sizes = pyramid(self.data.height, self.data.width)[::-1]
        channels = level_widths(len(sizes), self.config.width, self.config.widest)
        colours = self.data.channels
        return (
            GrowingGenerator(self.config.latent_dim, sizes, channels, colours),
            GrowingDiscriminator(sizes, channels, colours),
        )

    # Growth

    def place(self, images: int) -> tuple[int, float]:
        """The level after `images` images, and how far it is in."""
        fade, stabilise = self.config.fade_images, self.config.stabilise_images
        past = images - stabilise
        growths = len(self.generator.sizes) - 1
        if past < 0 or not growths:
            return 0, 1.0
        length = fade + stabilise
        level = min(growths, past // length + 1) if length else growths
        into = past - (level - 1) * length
        return level, min(1.0, into / fade) if fade else 1.0

    def grow_to(self, images: int) -> None:
        level, alpha = self.place(images)
        while self.generator.level < level:
            self._grow()
        for player in (self.generator, self.discriminator, self.ema.module):
            player.fade(alpha)

    def _grow(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(int(self.birth), "growth", self.generator.level))
            for player in (self.generator, self.discriminator):
                player.grow()
                player.to(self.birth.device, memory_format=self.layout)
        averaged: Growing = self.ema.module
        averaged.blocks.append(copy.deepcopy(self.generator.blocks[-1]))
        averaged.heads.append(copy.deepcopy(self.generator.heads[-1]))
        averaged.requires_grad_(False).eval()

    def init_from(self, other: Family) -> None:
        raise ConfigError(
            "a progressive GAN grows its layers while it trains, so it cannot start from one that has grown",
            field="init_from",
            remedy="continue a training with fork_from",
        )

    # Training

    def codes(self, noise: Tensor) -> Tensor:
        return latents_of(noise, "sphere")

    def reals(self, batch: Batch) -> Tensor:
        """Real images at the present grid, blended with the grid before as the fakes are."""
        sizes, level = self.generator.sizes, self.generator.level
        images = self.shrunk(super().reals(batch))
        if not self.generator.fading:
            return images
        factors = strides(sizes[level - 1], sizes[level])
        return blend(double(halve(images, factors), sizes[level]), images, self.generator.alpha)

    def shrunk(self, images: Tensor) -> Tensor:
        """Images of full size at the present grid."""
        sizes = self.generator.sizes
        for above in range(len(sizes) - 1, self.generator.level, -1):
            images = halve(images, strides(sizes[above - 1], sizes[above]))
        return images

    def step(self, batch: Batch, optimisers: dict, context: StepContext) -> Metrics:
        traced = super().step(batch, optimisers, context)
        side = torch.tensor(float(max(self.generator.sizes[self.generator.level])))
        return traced | {"alpha": self.generator.alpha.clone(), "resolution": side}

    def judgement(self, images: Tensor) -> Tensor:
        return super().judgement(self.shrunk(images))

    def pictures(self, made: Tensor) -> Tensor:
        """In [0, 1] and at full size, whatever the level."""
        for size in self.generator.sizes[self.generator.level + 1 :]:
            made = double(made, size)
        return super().pictures(made)
