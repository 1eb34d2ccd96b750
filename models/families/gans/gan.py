"""The generative adversarial network: images from noise, learned against a discriminator (Goodfellow et al. 2014)."""

from torch import Tensor, nn

from models.context import StepContext
from models.families.gans.base import GANBase
from models.families.gans.conv_networks import ConvDiscriminator, ConvGenerator
from models.families.gans.fastgan_networks import FastDiscriminator, FastGenerator
from models.families.gans.layers import latents_of
from models.families.gans.mlp_networks import MLPDiscriminator, MLPGenerator
from models.families.gans.presets import NetworkConfig, resolve_networks
from models.families.gans.updates import DInput, Penalties
from models.nn.image_pool import ImagePool
from models.types import DataSpec

ARCHITECTURES = {
    "stable": (ConvGenerator, ConvDiscriminator),
    "dcgan": (ConvGenerator, ConvDiscriminator),
    "mlp": (MLPGenerator, MLPDiscriminator),
    "fast": (FastGenerator, FastDiscriminator),
}


class GAN(GANBase):
    """The unconditional GAN: each loss, penalty and trick is a setting of its own."""

    name = "gan"
    summary = "Generates new images; losses, penalties and training tricks can be chosen one by one."
    lecture = "Generative adversarial networks: the minimax game, DCGAN, tips and tricks"
    Config = NetworkConfig
    config: NetworkConfig

    def __init__(self, config: NetworkConfig, data: DataSpec):
        super().__init__(config, data)
        self.replay = ImagePool(config.replay, data.shape) if config.replay else None

    @classmethod
    def resolve_config(cls, config: NetworkConfig, data: DataSpec) -> NetworkConfig:
        return resolve_networks(super().resolve_config(config, data), data)

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        generator, discriminator = ARCHITECTURES[self.config.body]
        return generator(self.config, self.data.shape), discriminator(self.config, self.data.shape)

    @property
    def spherical(self) -> bool:
        return self.config.latent == "sphere"

    def to_latents(self, noise: Tensor) -> Tensor:
        return latents_of(noise, self.config.latent)

    def replay_fakes(self, fakes: DInput, context: StepContext) -> DInput:
        if self.replay is None:
            return fakes
        return DInput(self.replay.exchange(fakes.images, context.generator))

    def d_forward(self, reals: DInput, fakes: DInput) -> tuple[Tensor, Tensor, Penalties]:
        """FastGAN's discriminator also learns to decode its features of real images (Liu et al. 2021, eq. 2)."""
        if self.config.body != "fast":
            return super().d_forward(reals, fakes)
        network = self.discriminator
        features = network.features(reals.images)
        a = network.logits_from(features)
        twice = reals.images.requires_grad or fakes.images.requires_grad
        b = (network.forward if twice else network)(fakes.images)
        return a, b, {"pretext": (1.0, network.reconstruction_error(features, reals.images.detach()))}
