"""Paired image-to-image translation with a conditional GAN (Isola et al. 2017)."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Discriminates
from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import scored
from models.families.translation.base import Translator
from models.families.translation.fcn_score import downstream_score
from models.families.translation.networks import PatchGAN, initialise, make_generator
from models.family import Config
from models.losses.adversarial import discriminator_loss, frozen, generator_loss, log_odds, update
from models.nn.ema import Ema
from models.types import Batch, DataSpec, Metrics

COLUMNS = {"ab": ("input", "target"), "ba": ("target", "input")}


class Pix2PixConfig(Config):
    """L_G = adversarial + lambda_l1 * L1, all means over everything, so the paper's lambda of 100 applies."""

    learning_rate: float = Field(2e-4, gt=0, le=1, description="Step size of Adam for both networks.")
    direction: Literal["ab", "ba", "both"] = Field(
        "ab", description="ab: input to target; both trains two pairs of networks."
    )
    generator: Literal["unet", "resnet"] = Field("unet", description="Body of the generator; resnet suits textures.")
    width: int | None = Field(
        None, ge=4, le=256, description="Channels of the first layer; empty: 32, from 128 pixels 64."
    )
    patch_layers: int | None = Field(
        None, ge=1, le=3, description="Strided layers of the PatchGAN; empty: from the size."
    )
    adversarial_loss: Literal["lsgan", "bce"] = Field("bce", description="Loss of the two-player game.")
    lambda_adversarial: float = Field(1.0, ge=0, le=1e3, description="Weight of the game; 0 is plain L1 regression.")
    lambda_l1: float = Field(100.0, ge=0, le=1e4, description="Weight of the L1 distance to the target.")
    downstream: bool = Field(
        False, description="Afterwards, measure how well a network that learned from real pairs reads the input back."
    )
    paper_mode: bool = Field(False, description="Dropout in the inner up blocks, in training and at serving.")


class Pix2Pix(Discriminates, Translator):
    """Trains as it serves: instance norm keeps no statistics; the served generator is an average over time."""

    name = "pix2pix"
    summary = "Translates images after pairs of input and target."
    lecture = "Pix2Pix"
    layouts = ("paired",)
    needs = ("input", "target")
    Config = Pix2PixConfig
    default_epochs = 60
    default_batch = 4
    scores_pairs = True

    def __init__(self, config: Pix2PixConfig, data: DataSpec):
        super().__init__(config, data)
        self.directions = ("ab", "ba") if config.direction == "both" else (config.direction,)
        self.patch_domains = tuple(direction[1] for direction in self.directions)
        size, channels = (data.height, data.width), data.channels
        self.generators, self.judges, self.served = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for direction in self.directions:
            generator = make_generator(config.generator, channels, channels, size, config.width, config.paper_mode)
            self.generators[direction] = generator
            self.judges[direction] = initialise(PatchGAN(2 * channels, config.width, config.patch_layers))
            self.served[direction] = Ema(generator, half_life=693 * config.batch_size)  # 0.999 an update

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        found: dict[str, list[Tensor]] = {"judge": [], "fool": [], "l1": []}
        fakes = {}
        for direction in self.directions:
            source, target = (batch[name] for name in COLUMNS[direction])
            fake = fakes[direction] = self.generators[direction](source)
            judge = self.judges[direction]
            pairs = torch.cat([torch.cat([source, shown], 1) for shown in (target, fake.detach())])
            # in one pass, which is faster: no image of a batch sees another
            found["judge"].append(discriminator_loss(self.config.adversarial_loss, *judge(pairs).chunk(2)))
        judge_total = update(optimisers["judges"], torch.stack(found["judge"]).sum())
        with frozen(self.judges):
            for direction, fake in fakes.items():
                source, target = (batch[name] for name in COLUMNS[direction])
                logits = self.judges[direction](torch.cat([source, fake], 1))
                found["fool"].append(generator_loss(self.config.adversarial_loss, logits))
                found["l1"].append((fake - target).abs().mean() * 2)  # the paper's pixels span [-1, 1]
            fool, l1 = torch.stack(found["fool"]).sum(), torch.stack(found["l1"]).sum()
            total = self.config.lambda_adversarial * fool + self.config.lambda_l1 * l1
            update(optimisers["generators"], total)
        for direction in self.directions:
            self.served[direction].update(self.generators[direction], self.config.batch_size, context.images)
        return {"loss": total.detach(), "judge": judge_total, "fool": fool.detach(), "l1": l1.detach() / 2}

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        """Of a pair: the input, and what was made of it."""
        judge = self.judges["ab" if domain == "b" else "ba"]
        return log_odds(self.config.adversarial_loss, judge(torch.cat(images, 1))[:, 0])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        found = {}
        for direction in self.directions:
            source, target = COLUMNS[direction]
            report = scored(
                partial(self.translate, direction=direction), train, validation, source, target, paired=True
            )
            if self.config.downstream:
                there = partial(self.translate, direction=direction)
                report |= downstream_score(there, train, validation, source, target, context.seed, self.device)
            found |= {
                name if len(self.directions) == 1 else f"{direction}_{name}": value for name, value in report.items()
            }
        return found

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        direction = self.directions[0]
        source, target = (probe[name][:16] for name in COLUMNS[direction])
        return torch.stack([source, self.translate(source, direction), target], 1).flatten(0, 1)
