"""A GAN whose noise becomes a style that steers every layer (Karras et al. 2019 and 2020)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import StyleBased
from models.context import StepContext
from models.data import Columns
from models.families.gans.config import GameConfig, game_clashes, resolve_game
from models.families.gans.progressive_networks import level_widths
from models.families.gans.sampling import Generative
from models.families.gans.stylegan2_networks import StyleDiscriminator, StyleGenerator
from models.losses.gradient_penalties import path_lengths
from models.nn.encoders import pyramid
from models.types import DataSpec

CENTRED = 10_000  # noise vectors whose mean style truncation pulls towards


class StyleGANConfig(GameConfig):
    """The game with styles; `latent_dim` is the width of noise and style alike."""

    widest: int = Field(128, ge=4, le=2048, description="Most channels of a level; the finest has `width`.")
    mapping_layers: int = Field(2, ge=1, le=16, description="Layers from noise to style; 8 in the paper.")
    noise: bool = Field(True, description="Every layer adds noise at a learned strength.")
    mixing: float = Field(0.9, ge=0, le=1, description="Share of images made from two styles in training.")
    path_length: float | None = Field(
        None, ge=0, le=100, description="Weight of the path length penalty; empty: 2 from 128 pixels, else none."
    )
    path_every: int = Field(4, ge=1, le=256, description="Updates of G from one path length penalty to the next.")


class StyleGAN(StyleBased, Generative):
    """Latents are styles: straight lines between them are good ways, and their mean is the typical image."""

    name = "style_gan"
    summary = "Draws new images from styles, which can be truncated, mixed and projected on."
    lecture = "Style-based generators"
    Config = StyleGANConfig
    config: StyleGANConfig

    def __init__(self, config: StyleGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.register_buffer("usual_length", torch.zeros(()))

    @classmethod
    def resolve_config(cls, config: StyleGANConfig, data: DataSpec) -> StyleGANConfig:
        config = super().resolve_config(config, data)
        for problem in game_clashes(config):
            raise problem
        preset = {"loss": "non_saturating", "r1": 1.0, "critic_steps": 1, "learning_rate": 2.5e-3}
        preset |= {"beta1": 0.0, "beta2": 0.99, "latent_dim": 128, "width": 32 if data.count >= 20_000 else 16}
        if config.path_length is None:  # on small images its gradient drowns the game's
            preset["path_length"] = 2.0 if max(data.height, data.width) >= 128 else 0.0
        return config.model_copy(update=resolve_game(config, data.count, preset))

    def players(self) -> tuple[nn.Module, nn.Module]:
        config, colours = self.config, self.data.channels
        sizes = pyramid(self.data.height, self.data.width)[::-1]
        channels = level_widths(len(sizes), config.width, config.widest)
        generator = StyleGenerator(config.latent_dim, sizes, channels, colours, config.mapping_layers, config.noise)
        return generator, StyleDiscriminator(sizes, channels, colours)

    # Training

    def make(self, count: int, wanted: Tensor | None, context: StepContext) -> Tensor:
        return self.generator(self._styles(count, context))

    def _styles(self, count: int, context: StepContext) -> Tensor:
        """Styles by layer, a share of them of two noises with a random crossing."""
        player, draws = self.generator, context.generator
        styles, others = player.mapping(self.noise(2 * count, draws)).split(count)
        player.follow(styles)
        crossing = torch.randint(1, player.depth, (count,), generator=draws, device=draws.device)
        alone = torch.rand(count, generator=draws, device=draws.device) >= self.config.mixing
        return player.mixed(styles, others, crossing.masked_fill(alone, player.depth))

    @property
    def bends(self) -> bool:
        return self.config.path_length > 0

    def generator_penalty(self, context: StepContext) -> Tensor | None:
        """Lazily, how much the length of |J^T y| varies around its running mean (eq. 4)."""
        turns = (context.step + 1) // self.config.critic_steps
        if not self.config.path_length or turns % self.config.path_every:
            return None
        styles = self._styles(max(1, self.config.batch_size // 2), context)
        lengths = path_lengths(self.generator(styles), styles, context.generator)
        with torch.no_grad():
            self.usual_length.lerp_(lengths.mean(), 0.01 if context.step > self.config.path_every else 1.0)
        penalty = (lengths - self.usual_length).square().mean()
        return self.config.path_length * self.config.path_every * penalty

    # Serving

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return self.ema.module.mapping(noise)

    def specimens(self, generator: StyleGenerator, count: int, context: StepContext) -> Tensor:
        return self.pictures(generator(generator.mapping(self.noise(count, context.generator))))

    def truncate(self, latents: Tensor, truncation: Tensor) -> Tensor:
        return torch.lerp(self.ema.module.centre.expand_as(latents), latents, truncation)

    @property
    def crossings(self) -> int:
        return self.generator.depth - 1

    def mix(self, coarse: Tensor, fine: Tensor, crossing: Tensor) -> Tensor:
        return self.pictures(self.ema(self.ema.module.mixed(coarse, fine, crossing)))

    def after_training(self, train: Columns, context: StepContext) -> None:
        player = self.ema.module
        player.centre.copy_(player.mapping(self.noise(CENTRED, context.generator)).mean(0))
        super().after_training(train, context)
