"""StyleGAN2: noise is mapped to a style that scales the features of every layer (Karras et al. 2019 and 2020)."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import StyleBased
from models.context import StepContext
from models.data import Columns
from models.families.gans.base import GANBase
from models.families.gans.config import SHORT, GANConfig, fill_training_settings, rate_for, training_conflicts
from models.families.gans.conv_networks import plain_discriminator
from models.families.gans.progressive_networks import level_widths
from models.families.gans.stylegan2_networks import StyleDiscriminator, StyleGenerator
from models.families.gans.updates import Penalties
from models.family import LONGER_CPU_SECONDS
from models.losses.gradient_penalties import path_lengths
from models.nn.encoders import pyramid
from models.training.ranks import mean_over_ranks, rank_count
from models.types import DataSpec

PLAIN_RATE = 1e-3  # learning rate of the discriminator of `gan`, whose weights are not equalized
CENTRE_SAMPLES = 10_000  # noise vectors whose mean style is the centre of truncation


class StyleGANConfig(GANConfig):
    """`latent_dim` is the width of both the noise and the style."""

    widest: int = Field(
        128, ge=4, le=2048, description="Maximum number of channels of a level; the finest level has `width`."
    )
    mapping_layers: int = Field(
        2, ge=1, le=16, description="Number of layers of the mapping from noise to style (8 in the paper)."
    )
    noise: bool = Field(True, description="Add noise with a learned strength after every layer of the generator.")
    mixing: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Fraction of training images generated from two styles (style mixing). Default: chosen from the "
        "training length (0 below 100,000 images, else 0.9).",
    )
    low_pass: bool = Field(
        True,
        description="Filter G's features with [1, 3, 3, 1] where their size doubles; without it images show a lattice.",
    )
    discriminator: Literal["residual", "plain"] | None = Field(
        None,
        description="Architecture of D. residual: that of StyleGAN2; plain: that of gan, which costs a third. Default: "
        "chosen from effort (residual for full, else plain).",
    )
    path_length: float | None = Field(
        None,
        ge=0,
        le=100,
        description="Weight of the path length penalty on G. Default: chosen from the dataset (2 from 128 "
        "pixels, else 0).",
    )
    path_every: int = Field(
        4, ge=1, le=256, description="Updates of the generator from one path length penalty to the next."
    )


class StyleGAN(StyleBased, GANBase):
    """Latents are styles w: interpolation is linear, and truncation moves them towards the mean style."""

    name = "style_gan"
    summary = "Generates new images from styles, which can be truncated, mixed, and found for a given image."
    lecture = "Style-based generators"
    Config = StyleGANConfig
    milliseconds = 4.0
    cpu_seconds = LONGER_CPU_SECONDS
    config: StyleGANConfig

    def __init__(self, config: StyleGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.register_buffer("usual_length", torch.zeros(()))  # running mean of the path lengths

    @classmethod
    def resolve_config(cls, config: StyleGANConfig, data: DataSpec) -> StyleGANConfig:
        config = super().resolve_config(config, data)
        for problem in training_conflicts(config):
            raise problem
        preset = {"loss": "non_saturating", "r1": 1.0, "critic_steps": 1}
        preset |= {"learning_rate": rate_for(config, 1e-2, 2.5e-3)}
        preset |= {"discriminator": "residual" if config.effort == "full" else "plain"}
        if (config.discriminator or preset["discriminator"]) == "plain":
            preset |= {"discriminator_learning_rate": PLAIN_RATE}
        preset |= {"mixing": 0.0 if config.images < SHORT else 0.9}
        preset |= {"beta1": 0.0, "beta2": 0.99, "latent_dim": 128, "width": 32 if data.count >= 20_000 else 16}
        if config.path_length is None:  # on small images its gradient exceeds that of the adversarial loss
            preset["path_length"] = 2.0 if max(data.height, data.width) >= 128 else 0.0
        return config.model_copy(update=fill_training_settings(config, data.count, preset))

    @classmethod
    def earlier_settings(cls, engine: int, data: DataSpec) -> dict[str, Any]:
        earlier = {"learning_rate": 2.5e-3, "mixing": 0.9, "low_pass": False, "discriminator": "residual"}
        return (earlier if engine < 2 else {}) | super().earlier_settings(engine, data)

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        config, colours = self.config, self.data.channels
        sizes = pyramid(self.data.height, self.data.width)[::-1]
        channels = level_widths(len(sizes), config.width, config.widest)
        generator = StyleGenerator(
            config.latent_dim, sizes, channels, colours, config.mapping_layers, config.noise, config.low_pass
        )
        if config.discriminator == "plain":
            return generator, plain_discriminator(config.width, self.data.shape)
        return generator, StyleDiscriminator(sizes, channels, colours)

    # Training

    def generate(self, count: int, condition: Tensor | None, context: StepContext) -> Tensor:
        return self.generator(self._styles(count, context))

    def _styles(self, count: int, context: StepContext) -> Tensor:
        """Styles (b, layers, w); a fraction `mixing` of the rows switches to another style at a random layer."""
        network, draws = self.generator, context.generator
        styles, others = network.mapping(self.noise(2 * count, draws)).split(count)
        network.update_centre(styles)
        crossing = torch.randint(1, network.depth, (count,), generator=draws, device=draws.device)
        unmixed = torch.rand(count, generator=draws, device=draws.device) >= self.config.mixing
        return network.mixed(styles, others, crossing.masked_fill(unmixed, network.depth))

    def g_penalties(self, context: StepContext) -> Penalties:
        """Every `path_every`-th update: E (|J^T y| - a)^2, with a the running mean of |J^T y| (Karras 2020, eq. 4)."""
        updates = (context.step + 1) // self.config.critic_steps
        if not self.config.path_length or updates % self.config.path_every:
            return {}
        styles = self._styles(max(1, self.config.batch_size // rank_count() // 2), context)
        lengths = path_lengths(self.generator(styles), styles, context.generator)
        weight = 0.01 if context.step > self.config.path_every else 1.0
        self.usual_length.lerp_(mean_over_ranks(lengths.mean()), weight)
        penalty = (lengths - self.usual_length).square().mean()
        # reported as it is weighted
        return {"generator_penalty": (1.0, self.config.path_length * self.config.path_every * penalty)}

    # Serving

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return self.ema.module.mapping(noise)

    def sample(self, network: StyleGenerator, count: int, context: StepContext) -> Tensor:
        return self.to_unit_range(network(network.mapping(self.noise(count, context.generator))))

    def truncate(self, latents: Tensor, truncation: Tensor) -> Tensor:
        return torch.lerp(self.ema.module.centre.expand_as(latents), latents, truncation)

    @property
    def crossings(self) -> int:
        return self.generator.depth - 1

    def mix(self, coarse: Tensor, fine: Tensor, crossing: Tensor) -> Tensor:
        return self.to_unit_range(self.ema(self.ema.module.mixed(coarse, fine, crossing)))

    def after_training(self, train: Columns, context: StepContext) -> None:
        network = self.ema.module
        network.centre.copy_(network.mapping(self.noise(CENTRE_SAMPLES, context.generator)).mean(0))
        super().after_training(train, context)
