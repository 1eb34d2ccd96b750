"""Paired image-to-image translation with a conditional GAN (Isola et al. 2017)."""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import evaluate_on_pairs
from models.families.translation.base import TranslationBase, TranslationConfig
from models.families.translation.fcn_score import downstream_score
from models.families.translation.networks import PatchGAN, initialise, make_generator
from models.losses.adversarial import frozen, update
from models.nn.ema import Ema
from models.types import Batch, DataSpec, Metrics

COLUMNS = {"ab": ("input", "target"), "ba": ("target", "input")}


class Pix2PixConfig(TranslationConfig):
    """L_G = lambda_adversarial * L_cGAN + lambda_l1 * L1 (Isola et al. 2017, eq. 4), pixels in [-1, 1]."""

    direction: Literal["ab", "ba", "both"] = Field(
        "ab", description="ab: input to target; ba: target to input; both: trains a generator for each."
    )
    generator: Literal["unet", "resnet"] = Field(
        "unet", description="Architecture of the generator; resnet suits textures."
    )
    adversarial_loss: Literal["lsgan", "bce"] = Field(
        "bce", description="Adversarial loss: lsgan (least squares) or bce (non-saturating cross-entropy)."
    )
    lambda_adversarial: float = Field(
        1.0, ge=0, le=1e3, description="Weight of the adversarial term; 0 is plain L1 regression."
    )
    lambda_l1: float = Field(100.0, ge=0, le=1e4, description="Weight of the L1 distance to the target.")
    downstream: bool = Field(
        False,
        description="After training, also measure the FCN score: how well a network trained on real pairs predicts "
        "the input from the generated target.",
    )
    paper_mode: bool = Field(
        False, description="Dropout in the three inner up blocks, in training and when serving, as in the paper."
    )


class Pix2Pix(TranslationBase):
    """Instance norm keeps no statistics, so the network serves as it trains. D scores pairs of input and output."""

    name = "pix2pix"
    summary = "Translates images after pairs of input and target."
    lecture = "Pix2Pix"
    layouts = ("paired",)
    needs = ("input", "target")
    Config = Pix2PixConfig
    bf16_on = ("cpu", "cuda")
    default_epochs = 60
    default_batch = 4
    milliseconds = 3.4
    resnet_cost = 1.5
    scores_pairs = True

    def __init__(self, config: Pix2PixConfig, data: DataSpec):
        super().__init__(config, data)
        self.directions = ("ab", "ba") if config.direction == "both" else (config.direction,)
        self.patch_domains = tuple(direction[1] for direction in self.directions)
        size, channels = (data.height, data.width), data.channels
        self.generators, self.judges, self.served = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for direction in self.directions:
            generator = make_generator(
                config.generator, channels, channels, size, config.width, config.paper_mode, config.skip
            )
            self.generators[direction] = generator
            self.judges[direction] = initialise(PatchGAN(2 * channels, config.width, config.patch_layers))
            self.served[direction] = Ema(generator, half_life=693 * config.batch_size)  # decay .999 an update

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        batch = self.augmented(batch, context)
        pairs = {way: tuple(batch[name] for name in COLUMNS[way]) for way in self.directions}
        fakes, d_losses = {}, []
        for direction, (source, target) in pairs.items():
            fake = fakes[direction] = self.generators[direction](source)
            real, generated = torch.cat([source, target], 1), torch.cat([source, fake.detach()], 1)
            d_losses.append(self.d_loss(direction, real, generated))
        d_total = update(optimisers["judges"], torch.stack(d_losses).sum())
        with frozen(self.judges):
            adversarial = [self.g_adv(way, torch.cat([pairs[way][0], fake], 1)) for way, fake in fakes.items()]
            distances = [self.pixel_distance(fake, pairs[way][1]) for way, fake in fakes.items()]
            g_adv = torch.stack(adversarial).sum()
            terms, reported = self.g_regularisers(distances)
            total = sum(terms, self.config.lambda_adversarial * g_adv)
            update(optimisers["generators"], total)
        for direction in self.directions:
            self.served[direction].update(self.generators[direction], self.config.batch_size, context.images)
        return {"loss": total.detach(), "judge": d_total, "fool": g_adv.detach(), **reported}

    def g_regularisers(self, distances: list[Tensor]) -> tuple[list[Tensor], Metrics]:
        """lambda_l1 * E|G(x) - y|  (Isola et al. 2017, eq. 3); reported per pixel in [0, 1]."""
        l1 = torch.stack(distances).sum()
        return [self.config.lambda_l1 * l1], {"l1": l1.detach() / 2}

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        """Log-odds for pairs: the input, and what was made of it."""
        return super().patches(torch.cat(images, 1), domain="ab" if domain == "b" else "ba")

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """L1 and PSNR on unseen pairs beside the baselines, for each direction."""
        measures = {}
        for direction in self.directions:
            source, target = COLUMNS[direction]
            forward = partial(self.translate, direction=direction)
            report = evaluate_on_pairs(forward, train, validation, source, target, paired=True)
            if self.config.downstream:
                report |= downstream_score(forward, train, validation, source, target, context.seed, self.device)
            prefix = "" if len(self.directions) == 1 else f"{direction}_"
            measures |= {f"{prefix}{name}": value for name, value in report.items()}
        return measures

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Rows of input, translation and target."""
        direction = self.directions[0]
        source, target = (probe[name][:16] for name in COLUMNS[direction])
        return torch.stack([source, self.translate(source, direction), target], 1).flatten(0, 1)
