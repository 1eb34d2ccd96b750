"""What the adversarial translators share: sizes from the data, the terms of both losses, optimisers, the schedule.

Generators G are kept by direction (`ab`, `ba`), PatchGAN discriminators D by the domain whose images they tell from
generated ones (`a`, `b`; in pix2pix, which scores pairs, by direction). A family's `step` calls `d_loss`, `g_adv` and
`g_regularisers`: to vary one term of the objective, override the one method.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Discriminates, Translates
from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import colour_distance, evenly_spaced
from models.families.translation.augment import jittered, mirrors_alike
from models.families.translation.instance_norm import image_statistics, normalised
from models.families.translation.networks import default_patch_layers
from models.family import LONGER_CPU_SECONDS, Config, Family, default_effort
from models.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    log_odds,
)
from models.types import Batch, DataSpec, Metrics

SHORT_BATCH = 8
"""Images per update at efforts below full: a quarter less CPU time for an image than 2 or 4."""
FEW = 5000
"""Training images from which on they are not shifted."""
ALIKE = 0.2
"""Domains whose colour distance is below this are alike: most of an image may stay as it is. Inverted digits: 0.7."""


class TranslationConfig(Config):
    """L_G = adversarial term + regularisers; L_D as in `adversarial_loss`. All are means over pixels or patches."""

    learning_rate: float | None = Field(
        None, gt=0, le=1, description="Step size of Adam for all networks. Default: 4e-4, at effort full 2e-4."
    )
    width: int | None = Field(
        None,
        ge=4,
        le=256,
        description="Channels of the first layer. Default: chosen from the image size (32 below 128 pixels, else 64; "
        "at effort lesson half of it).",
    )
    skip: bool | None = Field(
        None,
        description="U-Net: adds a linear map of the input's channels to the output, which keeps lines sharp. Default: "
        "true, at effort full false.",
    )
    mirror: bool | None = Field(
        None,
        description="Mirror a random half of the training images left to right. Default: chosen from the dataset (true "
        "if its mirrored images are like its images; at effort full false).",
    )
    jitter: float | None = Field(
        None,
        ge=0,
        le=0.25,
        description="Shift each training image by up to this fraction of its side. Default: chosen from the dataset "
        "(1/16 below 5,000 training images, else 0; at effort full 0).",
    )
    patch_layers: int | None = Field(
        None,
        ge=1,
        le=3,
        description="Strided layers of each PatchGAN discriminator. Default: chosen from the image size "
        "(1 below 48 pixels, 2 below 128, else 3: patches of 16, 34 or 70 pixels).",
    )
    adversarial_loss: Literal["lsgan", "bce"] = Field(
        "lsgan", description="Adversarial loss: lsgan (least squares) or bce (non-saturating cross-entropy)."
    )


class UnpairedConfig(TranslationConfig):
    """Settings of the translators that learn without pairs."""

    from_input: bool | None = Field(
        None,
        description="true: generators add to their input and start as copies of it, which keeps what need not change; "
        "false: they produce the whole image, as in the paper. Default: chosen from the dataset (true if the colours "
        "of the two domains are alike).",
    )
    softness: float = Field(
        0.5, ge=0, le=2, description="Smooths each L1 near zero where generators add to their input; 0 = plain L1."
    )


class TranslationBase(Discriminates, Translates, Family):
    """Generators against discriminators; the served generators are exponential moving averages."""

    snapshot_cost = 1.0
    length_free_until = 0.5
    cpu_seconds = LONGER_CPU_SECONDS
    resnet_cost: ClassVar[float] = 1.0
    """Factor on `milliseconds`, which is of a U-Net, if the generators are ResNets."""
    residual: ClassVar[bool] = False
    """The generators may add to their input (`Config` is an UnpairedConfig); else they produce the whole image."""

    generators: nn.ModuleDict
    judges: nn.ModuleDict  # the discriminators; the name is a key of published weights
    served: nn.ModuleDict

    @classmethod
    def resolve_config(cls, config: TranslationConfig, data: DataSpec) -> TranslationConfig:
        short = (config.effort or default_effort()) != "full"
        if short and config.batch_size is None:
            config = config.model_copy(update={"batch_size": SHORT_BATCH})
        config = super().resolve_config(config, data)
        width = (64 if min(data.height, data.width) >= 128 else 32) // (2 if config.effort == "lesson" else 1)
        defaults = {
            "patch_layers": default_patch_layers(data.height, data.width),
            "width": width,
            "learning_rate": 4e-4 if short else 2e-4,
            "jitter": 1 / 16 if short and data.count < FEW else 0.0,
            "mirror": None if short else False,
            "skip": short,
            "generator": "unet" if config.effort == "lesson" else "resnet",
        }
        missing = {name: value for name, value in defaults.items() if getattr(config, name, name) is None}
        return config.model_copy(update=missing)

    @classmethod
    def milliseconds_per_image(cls, config: TranslationConfig, data: DataSpec) -> float:
        factor = cls.resnet_cost if getattr(config, "generator", None) == "resnet" else 1.0
        return factor * super().milliseconds_per_image(config, data)

    def before_training(self, train: Columns) -> None:
        super().before_training(train)
        if self.config.mirror is None:
            images = evenly_spaced(train)
            mirror = mirrors_alike({name: images[name] for name in self.needs})
            self.config = self.config.model_copy(update={"mirror": mirror})
        if not self.residual:
            return
        residual = self.adds_to_input if self.initialised_from is not None else self.config.from_input
        if residual is None:
            images = evenly_spaced(train)
            residual = colour_distance(images["a"], images["b"]) < ALIKE
        self.config = self.config.model_copy(update={"from_input": residual})
        self.apply_residual()

    @property
    def adds_to_input(self) -> bool:
        """Whether the generators add to their input; stored with their weights."""
        return next(iter(self.generators.values())).adds

    def apply_residual(self) -> None:
        """Make new generators residual if the config says so. Does nothing twice."""
        for generators in (self.generators, self.served):
            for generator in generators.values():
                network = getattr(generator, "module", generator)
                if self.config.from_input and not network.adds:
                    network.make_residual()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.config.learning_rate
        networks = {"generators": self.generators, "judges": self.judges}
        return {
            name: torch.optim.Adam(net.parameters(), rate, (0.5, 0.999), fused=True) for name, net in networks.items()
        }

    def schedule(self, progress: float) -> float:
        """1 for the first half, then linearly to 0, as in both papers."""
        return min(1.0, 2 * (1 - progress))

    def augmented(self, batch: Batch, context: StepContext) -> Batch:
        """The images of a batch, mirrored and shifted as configured; both images of a pair in the same way."""
        config, draws = self.config, context.generator
        if not (config.mirror or config.jitter):
            return batch
        if not self.scores_pairs:
            return {name: jittered(batch[name], config.mirror, config.jitter, draws) for name in self.needs}
        both = torch.cat([batch[name] for name in self.needs], 1)
        parts = jittered(both, config.mirror, config.jitter, draws).chunk(len(self.needs), 1)
        return dict(zip(self.needs, parts, strict=True))

    def d_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
        """The loss of the discriminator `name` on real and generated inputs (B, C', H, W) -> scalar.

        Both go through D in one pass, which is faster; instance norm keeps images apart.
        """
        logits = self.judges[name](torch.cat([real, fake]))
        return discriminator_loss(self.config.adversarial_loss, *logits.chunk(2))

    def g_adv(self, name: str, fake: Tensor) -> Tensor:
        """The adversarial term of the generator's loss, from discriminator `name` on (B, C', H, W) -> scalar."""
        return generator_loss(self.config.adversarial_loss, self.judges[name](fake))

    @abstractmethod
    def g_regularisers(self, *args, **kwargs) -> tuple[list[Tensor], Metrics]:
        """The other terms of the generator's loss: weighted scalars to add in order, and unweighted ones to report."""

    def pixel_distance(self, image: Tensor, target: Tensor) -> Tensor:
        """Mean L1 over pixels in [-1, 1]; where generators add to their input, the Charbonnier loss with s = softness.

        At the kink of L1, generators that start as copies stay copies: cycle and identity already hold, and the first
        step away from them is penalised in full before the other generator has learned to undo it.
        """
        difference, softness = (image - target) * 2, getattr(self.config, "softness", 0.0)
        if not softness or not self.adds_to_input:
            return difference.abs().mean()
        return (difference.square() + softness**2).sqrt().mean() - softness  # E[sqrt(d^2 + s^2)] - s

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        logits = self.judges[domain](*images)
        return log_odds(self.config.adversarial_loss, logits[:, 0])

    def translate(self, images: Tensor, direction: str) -> Tensor:
        return self.served[direction](images).clamp(0, 1)

    def statistics(self, image: Tensor, directions: list[str]) -> list[Tensor]:
        return image_statistics([self.served[direction] for direction in directions], image)

    def translate_tiles(self, tiles: Tensor, direction: str, statistics: Tensor) -> Tensor:
        with normalised(self.served[direction], statistics):
            return self.served[direction](tiles).clamp(0, 1)
