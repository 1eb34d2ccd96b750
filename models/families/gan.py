"""The generative adversarial network: images from noise, learnt against a discriminator (Goodfellow et al. 2014)."""

from torch import Tensor, nn

from models.gan.bodies import ConvDiscriminator, ConvGenerator
from models.gan.fast import FastDiscriminator, FastGenerator
from models.gan.flat import FlatDiscriminator, FlatGenerator
from models.gan.game import Shown
from models.gan.layers import latents_of
from models.gan.serving import Generative
from models.gan.tricks import BodyConfig, resolve_bodies
from models.moment import Moment
from models.nn.history import HistoryPool
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
        self.replay = HistoryPool(config.replay, data.shape) if config.replay else None

    @classmethod
    def resolve(cls, config: BodyConfig, data: DataSpec) -> BodyConfig:
        return resolve_bodies(super().resolve(config, data), data)

    def players(self) -> tuple[nn.Module, nn.Module]:
        generator, discriminator = BODIES[self.config.body]
        return generator(self.config, self.data.shape), discriminator(self.config, self.data.shape)

    @property
    def spherical(self) -> bool:
        return self.config.latent == "sphere"

    def codes(self, noise: Tensor) -> Tensor:
        return latents_of(noise, self.config.latent)

    def remembered(self, fakes: Shown, moment: Moment) -> Shown:
        if self.replay is None:
            return fakes
        return Shown(self.replay.exchange(fakes.images, moment.generator))

    @property
    def has_pretext(self) -> bool:
        return self.config.body == "fast"

    def pretext(self, features: Tensor, reals: Tensor) -> Tensor:
        return self.discriminator.redrawing_error(features, reals)
