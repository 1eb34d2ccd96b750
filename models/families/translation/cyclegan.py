"""Unpaired image-to-image translation with cycle consistency (Zhu et al. 2017)."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Discriminates
from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import cycle_l1, moved, sample, scored
from models.families.translation.networks import PatchGAN, initialise, make_generator
from models.families.translation.unpaired import Unpaired, UnpairedConfig
from models.losses.adversarial import discriminator_loss, frozen, generator_loss, log_odds, update
from models.nn.ema import Ema
from models.nn.image_pool import HistoryPool
from models.types import Batch, DataSpec, Metrics

OTHER = {"a": "b", "b": "a"}


class CycleGANConfig(UnpairedConfig):
    """Objective of the paper: both games + lambda_cycle * cycle L1 + lambda_identity * lambda_cycle * identity L1."""

    learning_rate: float = Field(2e-4, gt=0, le=1, description="Step size of Adam for all four networks.")
    generator: Literal["resnet", "unet"] = Field("resnet", description="Body of both generators.")
    width: int | None = Field(
        None, ge=4, le=256, description="Channels of the first layer; empty: 32, from 128 pixels 64."
    )
    patch_layers: int | None = Field(
        None, ge=1, le=3, description="Strided layers of the PatchGANs; empty: from the size."
    )
    adversarial_loss: Literal["lsgan", "bce"] = Field("lsgan", description="Loss of the two games.")
    lambda_cycle: float = Field(10.0, ge=0, le=1e3, description="Weight of |G(F(b)) - b| + |F(G(a)) - a|.")
    lambda_identity: float = Field(
        0.5, ge=0, le=10, description="Weight of |G(b) - b|, times lambda_cycle; lower it when inputs are copied."
    )
    cycle_noise: float = Field(
        0.0, ge=0, le=0.5, description="Noise on a translation before the way back, against hidden messages."
    )
    pool: int = Field(50, ge=1, le=1000, description="Past translations shown to the discriminators again.")


class CycleGAN(Discriminates, Unpaired):
    """The generator `ab` makes B from A; judge `b` tells its work from real B."""

    name = "cyclegan"
    summary = "Translates between two sets of images without pairs."
    lecture = "CycleGAN"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = CycleGANConfig
    directions = ("ab", "ba")
    patch_domains = ("b", "a")
    default_epochs = 40
    default_batch = 2

    def __init__(self, config: CycleGANConfig, data: DataSpec):
        super().__init__(config, data)
        size, channels = (data.height, data.width), data.channels
        self.generators, self.judges = nn.ModuleDict(), nn.ModuleDict()
        self.served, self.pools = nn.ModuleDict(), nn.ModuleDict()
        for source, target in OTHER.items():
            generator = make_generator(config.generator, channels, channels, size, config.width)
            self.generators[source + target] = generator
            self.served[source + target] = Ema(generator, half_life=693 * config.batch_size)  # 0.999 an update
            self.judges[target] = initialise(PatchGAN(channels, config.width, config.patch_layers))
            self.pools[target] = HistoryPool(config.pool, data.shape)
        self.settle()

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        fakes, metrics = self._update_generators(batch, optimisers["generators"], context)
        kind, losses = self.config.adversarial_loss, []
        for domain, judge in self.judges.items():
            shown = self.pools[domain].exchange(fakes[domain], context.generator)
            losses.append(discriminator_loss(kind, *judge(torch.cat([batch[domain], shown])).chunk(2)))
        metrics["judge"] = update(optimisers["judges"], torch.stack(losses).sum())
        for direction, generator in self.generators.items():
            self.served[direction].update(generator, self.config.batch_size, context.images)
        return metrics

    def _update_generators(
        self, batch: Batch, optimiser: torch.optim.Optimizer, context: StepContext
    ) -> tuple[dict[str, Tensor], Metrics]:
        config = self.config
        fool, cycle, identity, fakes = [], [], [], {}
        with frozen(self.judges):
            for source, target in OTHER.items():
                there, back = self.generators[source + target], self.generators[target + source]
                # both domains in one pass, which is faster; no image of a batch sees another
                shown = [batch[source], *([batch[target]] if config.lambda_identity else [])]
                fake, *same = there(torch.cat(shown)).split(len(batch[source]))
                fakes[target] = fake
                fool.append(generator_loss(config.adversarial_loss, self.judges[target](fake)))
                cycle.append(self.apart(back(self._noisy(fake, context)), batch[source]))
                identity += [self.apart(image, batch[target]) for image in same]
            metrics = {"fool": torch.stack(fool).sum(), "cycle": torch.stack(cycle).sum()}
            metrics["identity"] = torch.stack(identity).sum() if identity else torch.zeros_like(metrics["fool"])
            lambda_identity = config.lambda_cycle * config.lambda_identity
            regular = config.lambda_cycle * metrics["cycle"] + lambda_identity * metrics["identity"]
            metrics["loss"] = metrics["fool"] + regular
            update(optimiser, metrics["loss"])
        return {name: fake.detach() for name, fake in fakes.items()}, {k: v.detach() for k, v in metrics.items()}

    def _noisy(self, fake: Tensor, context: StepContext) -> Tensor:
        if not self.config.cycle_noise:
            return fake
        noise = torch.randn(fake.shape, generator=context.generator, device=fake.device)
        return fake + self.config.cycle_noise * noise

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        return log_odds(self.config.adversarial_loss, self.judges[domain](*images)[:, 0])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Cycle distance per pixel and how far a translation moves; with twins, how near it comes to the truth."""
        report, unseen = {}, sample(validation)
        for source, target in OTHER.items():
            way, back = source + target, partial(self.translate, direction=target + source)
            there = partial(self.translate, direction=way)
            found = moved(there, train, validation, source, target)
            found["cycle_l1"] = cycle_l1(there, back, unseen[source])
            if self.data.twins:
                found |= scored(there, train, validation, source, target, paired=False)
            report |= {f"{way}_{name}": value for name, value in found.items()}
        return report

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        rows = []
        for source, target in OTHER.items():
            images = probe[source][:8]
            there = self.translate(images, source + target)
            rows.append(torch.stack([images, there, self.translate(there, target + source)], 1).flatten(0, 1))
        return torch.cat(rows)
