"""Unpaired image-to-image translation with cycle consistency (Zhu et al. 2017)."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import cycle_l1, evaluate_on_pairs, evenly_spaced, mean_change
from models.families.translation.base import TranslationBase, UnpairedConfig
from models.families.translation.networks import PatchGAN, initialise, make_generator
from models.losses.adversarial import frozen, update
from models.nn.ema import Ema
from models.nn.image_pool import ImagePool
from models.types import Batch, DataSpec, Metrics

OTHER = {"a": "b", "b": "a"}


class CycleGANConfig(UnpairedConfig):
    """L = L_GAN(G, D_B) + L_GAN(F, D_A) + lambda_cycle * L_cyc + lambda_identity * lambda_cycle * L_identity."""

    generator: Literal["resnet", "unet"] | None = Field(
        None,
        description="Architecture of both generators. Default: unet at effort lesson, where it learns more in the same "
        "time, else resnet.",
    )
    lambda_cycle: float = Field(
        10.0, ge=0, le=1e3, description="Weight of the cycle consistency |G(F(b)) - b| + |F(G(a)) - a|."
    )
    lambda_identity: float = Field(
        0.5,
        ge=0,
        le=10,
        description="Weight of the identity term |G(b) - b| + |F(a) - a|, times lambda_cycle. Lower it if outputs "
        "are copies of their inputs.",
    )
    cycle_noise: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Standard deviation of Gaussian noise added to a translation before it is translated back, which "
        "keeps generators from hiding the input in it.",
    )
    pool: int = Field(50, ge=1, le=1000, description="Number of past translations kept to train the discriminators on.")


class CycleGAN(TranslationBase):
    """Generator `ab` (G) maps A to B, `ba` (F) maps B to A; discriminator `b` tells G's images from real B."""

    name = "cyclegan"
    summary = "Translates between two sets of images without pairs."
    lecture = "CycleGAN"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = CycleGANConfig
    bf16_on = ("cpu", "cuda")
    residual = True
    directions = ("ab", "ba")
    patch_domains = ("b", "a")
    default_epochs = 40
    default_batch = 2
    milliseconds = 13.5
    resnet_cost = 2.1

    def __init__(self, config: CycleGANConfig, data: DataSpec):
        super().__init__(config, data)
        size, channels = (data.height, data.width), data.channels
        self.generators, self.judges = nn.ModuleDict(), nn.ModuleDict()
        self.served, self.pools = nn.ModuleDict(), nn.ModuleDict()
        for source, target in OTHER.items():
            generator = make_generator(config.generator, channels, channels, size, config.width, skip=config.skip)
            self.generators[source + target] = generator
            self.served[source + target] = Ema(generator, half_life=693 * config.batch_size)  # decay .999 an update
            self.judges[target] = initialise(PatchGAN(channels, config.width, config.patch_layers))
            self.pools[target] = ImagePool(config.pool, data.shape)
        self.apply_residual()

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        batch = self.augmented(batch, context)
        fakes, metrics = self._update_generators(batch, optimisers["generators"], context)
        d_losses = []
        for domain in self.judges:
            past = self.pools[domain].exchange(fakes[domain], context.generator)
            d_losses.append(self.d_loss(domain, batch[domain], past))
        metrics["judge"] = update(optimisers["judges"], torch.stack(d_losses).sum())
        for direction, generator in self.generators.items():
            self.served[direction].update(generator, self.config.batch_size, context.images)
        return metrics

    def _update_generators(
        self, batch: Batch, optimiser: torch.optim.Optimizer, context: StepContext
    ) -> tuple[dict[str, Tensor], Metrics]:
        adversarial, cycles, identities, fakes = [], [], [], {}
        with frozen(self.judges):
            for source, target in OTHER.items():
                forward, backward = self.generators[source + target], self.generators[target + source]
                # both domains go through G in one pass, which is faster; instance norm keeps images apart
                inputs = [batch[source], *([batch[target]] if self.config.lambda_identity else [])]
                fake, *same = forward(torch.cat(inputs)).split(len(batch[source]))
                fakes[target] = fake
                adversarial.append(self.g_adv(target, fake))
                cycles.append(self.cycle_term(backward, fake, batch[source], context))
                identities += [self.pixel_distance(image, batch[target]) for image in same]  # |G(b) - b|
            metrics = {"fool": torch.stack(adversarial).sum()}
            terms, reported = self.g_regularisers(cycles, identities)
            metrics |= reported
            metrics["loss"] = sum(terms, metrics["fool"])
            update(optimiser, metrics["loss"])
        return {name: fake.detach() for name, fake in fakes.items()}, {k: v.detach() for k, v in metrics.items()}

    def cycle_term(self, backward: nn.Module, fake: Tensor, images: Tensor, context: StepContext) -> Tensor:
        """One half of L_cyc = E|F(G(a)) - a| + E|G(F(b)) - b|  (Zhu et al. 2017, eq. 2)."""
        if self.config.cycle_noise:
            noise = torch.randn(fake.shape, generator=context.generator, device=fake.device)
            fake = fake + self.config.cycle_noise * noise
        return self.pixel_distance(backward(fake), images)

    def g_regularisers(self, cycles: list[Tensor], identities: list[Tensor]) -> tuple[list[Tensor], Metrics]:
        """lambda_cycle * (L_cyc + lambda_identity * L_identity) from the distances of both directions (eq. 3)."""
        config, cycle = self.config, torch.stack(cycles).sum()
        identity = torch.stack(identities).sum() if identities else torch.zeros_like(cycle)
        weighted = config.lambda_cycle * cycle + config.lambda_cycle * config.lambda_identity * identity
        return [weighted], {"cycle": cycle, "identity": identity}

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Cycle distance per pixel, mean change of an image and, with twins, the distance to the true translation."""
        report, unseen = {}, evenly_spaced(validation)
        for source, target in OTHER.items():
            direction = source + target
            forward = partial(self.translate, direction=direction)
            backward = partial(self.translate, direction=target + source)
            measures = mean_change(forward, train, validation, source, target)
            measures["cycle_l1"] = cycle_l1(forward, backward, unseen[source])
            if self.data.twins:
                measures |= evaluate_on_pairs(forward, train, validation, source, target, paired=False)
            report |= {f"{direction}_{name}": value for name, value in measures.items()}
        return report

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """For each direction rows of input, translation, and translation back."""
        rows = []
        for source, target in OTHER.items():
            images = probe[source][:8]
            fake = self.translate(images, source + target)
            rows.append(torch.stack([images, fake, self.translate(fake, target + source)], 1).flatten(0, 1))
        return torch.cat(rows)
