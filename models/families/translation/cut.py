"""One-sided unpaired translation: patches of the output stay what they were (Park et al. 2020, CUT and FastCUT)."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Discriminates
from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import moved, scored
from models.families.translation.networks import Fitted, PatchGAN, initialise, make_generator
from models.families.translation.unpaired import Unpaired, UnpairedConfig
from models.losses.adversarial import discriminator_loss, frozen, generator_loss, log_odds, update
from models.nn.ema import Ema
from models.types import Batch, DataSpec, Metrics


class CUTConfig(UnpairedConfig):
    """L_G = game + lambda_nce * PatchNCE; FastCUT is lambda_nce 10, identity off, flip_equivariance on.

    Where the generator starts from its input, lambda_identity * |G(b) - b| comes with the identity.
    """

    learning_rate: float = Field(2e-4, gt=0, le=1, description="Step size of Adam for all networks.")
    direction: Literal["ab", "ba"] = Field("ab", description="ab: from domain A to domain B.")
    width: int | None = Field(
        None, ge=4, le=256, description="Channels of the first layer; empty: 32, from 128 pixels 64."
    )
    patch_layers: int | None = Field(
        None, ge=1, le=3, description="Strided layers of the PatchGAN; empty: from the size."
    )
    adversarial_loss: Literal["lsgan", "bce"] = Field("lsgan", description="Loss of the game.")
    lambda_nce: float = Field(1.0, ge=0, le=100, description="Weight of the contrast between patches.")
    identity: bool = Field(True, description="Images of the target domain are to stay as they are, patch by patch.")
    lambda_identity: float = Field(
        5.0,
        ge=0,
        le=1e3,
        description="With identity, where the generator starts from its input: weight of |G(b) - b|.",
    )
    patches: int = Field(256, ge=2, le=4096, description="Places of an image that are contrasted, for each layer.")
    temperature: float = Field(0.07, gt=0, le=10, description="Smaller: patches must differ more from each other.")
    flip_equivariance: bool = Field(False, description="Half of the updates show mirrored images as well.")


class Heads(nn.Module):
    """For each layer a perceptron of two layers: features of a place in, a unit vector out (paper, section 3)."""

    training_only = True

    def __init__(self, widths: list[int], size: int = 256):
        super().__init__()
        heads = (nn.Sequential(nn.Linear(width, size), nn.ReLU(), nn.Linear(size, size)) for width in widths)
        self.heads = nn.ModuleList(heads)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Maps (b, c, h, w) and indices (p,) into h*w -> unit vectors (b, p, size)."""
        found = []
        for head, features, chosen in zip(self.heads, maps, places, strict=True):
            rows = features.flatten(2)[..., chosen].transpose(1, 2)
            found.append(F.normalize(head(rows), dim=-1, eps=1e-7))
        return found


def patch_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Each place of the output is to resemble its own place of the input among all of the image (eq. 3).

    Unit vectors (b, p, d) twice -> scalar, mean over places and images.
    """
    logits = queries @ keys.transpose(1, 2) / temperature
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


class CUT(Discriminates, Unpaired):
    """One generator, one judge: about twice as fast as CycleGAN, and nothing to hide a message for."""

    name = "cut"
    summary = "Translates one way between two sets of images without pairs, faster than CycleGAN."
    lecture = "CycleGAN"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = CUTConfig
    default_epochs = 40
    default_batch = 2

    def __init__(self, config: CUTConfig, data: DataSpec):
        super().__init__(config, data)
        self.directions, self.patch_domains = (config.direction,), (config.direction[1],)
        generator = make_generator("resnet", data.channels, data.channels, (data.height, data.width), config.width)
        self.generators = nn.ModuleDict({config.direction: generator})
        self.served = nn.ModuleDict({config.direction: Ema(generator, half_life=693 * config.batch_size)})
        self.judges = nn.ModuleDict(
            {config.direction[1]: initialise(PatchGAN(data.channels, config.width, config.patch_layers))}
        )
        self.settle()
        self.heads = Heads([data.channels, config.width, 2 * config.width, 4 * config.width, 4 * config.width])

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        found = super().optimisers()
        found["generators"].add_param_group({"params": list(self.heads.parameters())})
        return found

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        config, (source, target) = self.config, self.config.direction
        generator, judge = self.generators[config.direction], self.judges[target]
        wanted = batch[target]
        shown = torch.cat([batch[source], wanted]) if config.identity else batch[source]
        if config.flip_equivariance and context.step % 2:
            shown, wanted = shown.flip(3), wanted.flip(3)
        made = generator(shown)
        fake = made[: len(batch[source])]
        loss = discriminator_loss(config.adversarial_loss, *judge(torch.cat([wanted, fake.detach()])).chunk(2))
        metrics = {"judge": update(optimisers["judges"], loss)}
        with frozen(judge):
            fool = generator_loss(config.adversarial_loss, judge(fake))
            nce = self.contrast(generator, shown, made, context)
            total = fool + config.lambda_nce * nce
            if config.identity and self.adds:
                total = total + config.lambda_identity * self.apart(made[len(fake) :], wanted)
            update(optimisers["generators"], total)
        self.served[config.direction].update(generator, config.batch_size, context.images)
        return metrics | {"loss": total.detach(), "fool": fool.detach(), "nce": nce.detach()}

    def contrast(self, generator: Fitted, shown: Tensor, made: Tensor, context: StepContext) -> Tensor:
        """PatchNCE over the layers of the generator's first half (eq. 4), of both domains where both were shown."""
        with torch.no_grad():
            before = generator.network.features(generator.padded(shown))
        after = generator.network.features(generator.padded(made))
        places = [self._places(features, context.generator) for features in before]
        with torch.no_grad():
            keys = self.heads(before, places)
        queries = self.heads(after, places)
        losses = [patch_nce(*each, self.config.temperature) for each in zip(queries, keys, strict=True)]
        return torch.stack(losses).mean()

    def _places(self, features: Tensor, draws: torch.Generator) -> Tensor:
        total = features[0, 0].numel()
        return torch.randperm(total, generator=draws, device=features.device)[: self.config.patches]

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        return log_odds(self.config.adversarial_loss, self.judges[domain](*images)[:, 0])

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """How far a translation moves, and with twins how near it comes to the truth."""
        there = partial(self.translate, direction=self.config.direction)
        report = moved(there, train, validation, *self.config.direction)
        if self.data.twins:
            report |= scored(there, train, validation, *self.config.direction, paired=False)
        return report

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        source, _ = self.config.direction
        images = probe[source][:16]
        return torch.stack([images, self.translate(images, self.config.direction)], 1).flatten(0, 1)
