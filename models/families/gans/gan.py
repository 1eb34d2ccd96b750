"""The generative adversarial network: images from noise, learnt against a discriminator (Goodfellow et al. 2014)."""

from torch import Tensor, nn

from models.context import StepContext
from models.families.gans.base import Shown
from models.families.gans.conv_networks import ConvDiscriminator, ConvGenerator
from models.families.gans.fastgan_networks import FastDiscriminator, FastGenerator
from models.families.gans.layers import latents_of
from models.families.gans.mlp_networks import FlatDiscriminator, FlatGenerator
from models.families.gans.presets import BodyConfig, resolve_bodies
from models.families.gans.sampling import Generative
from models.nn.image_pool import ImagePool
from models.types import DataSpec

BODIES = {
    "stable": (ConvGenerator, ConvDiscriminator),
    "dcgan": (ConvGenerator, ConvDiscriminator),
    "mlp": (FlatGenerator, FlatDiscriminator),
    "fast": (FastGenerator, FastDiscriminator),
}


class GAN(Generative):
    """Every trick is a field of the config, off or on by itself."""

    name = "gan"
    summary = "Draws new images; trained against a discriminator, with the losses and tricks of a decade as switches."
    lecture = "Generative adversarial networks: the minimax game, DCGAN, tips and tricks"
    Config = BodyConfig
    config: BodyConfig

    def __init__(self, config: BodyConfig, data: DataSpec):
        super().__init__(config, data)
        self.replay = ImagePool(config.replay, data.shape) if config.replay else None

    @classmethod
    def resolve_config(cls, config: BodyConfig, data: DataSpec) -> BodyConfig:
        return resolve_bodies(super().resolve_config(config, data), data)

    def players(self) -> tuple[nn.Module, nn.Module]:
        generator, discriminator = BODIES[self.config.body]
        return generator(self.config, self.data.shape), discriminator(self.config, self.data.shape)

    @property
    def spherical(self) -> bool:
        return self.config.latent == "sphere"

    def codes(self, noise: Tensor) -> Tensor:
        return latents_of(noise, self.config.latent)

    def remembered(self, fakes: Shown, context: StepContext) -> Shown:
        if self.replay is None:
            return fakes
        return Shown(self.replay.exchange(fakes.images, context.generator))

    @property
    def has_pretext(self) -> bool:
        return self.config.body == "fast"

    def pretext(self, features: Tensor, reals: Tensor) -> Tensor:
        return self.discriminator.redrawing_error(features, reals)
