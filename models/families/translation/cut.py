"""One-sided unpaired translation: patches of the output stay what they were (Park et al. 2020, CUT and FastCUT)."""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from models.context import StepContext
from models.data import Columns
from models.evaluation.translation import evaluate_on_pairs, mean_change
from models.families.translation.base import TranslationBase, UnpairedConfig
from models.families.translation.networks import PaddedGenerator, PatchGAN, initialise, make_generator
from models.losses.adversarial import frozen, update
from models.nn.ema import Ema
from models.training.precision import learned_passes
from models.types import Batch, DataSpec, Metrics


class CUTConfig(UnpairedConfig):
    """L_G = L_GAN + lambda_nce * L_PatchNCE(G, A) [+ the same for B with `identity`]  (Park et al. 2020, eq. 5).

    FastCUT is lambda_nce 10, identity false, flip_equivariance true. Where the generator adds to its input,
    lambda_identity * |G(b) - b| is added with the identity.
    """

    direction: Literal["ab", "ba"] = Field("ab", description="ab: from domain A to domain B; ba: from B to A.")
    lambda_nce: float = Field(1.0, ge=0, le=100, description="Weight of the contrastive term between patches.")
    identity: bool = Field(
        True, description="Also apply the contrastive term to images of the target domain, which should not change."
    )
    lambda_identity: float = Field(
        5.0,
        ge=0,
        le=1e3,
        description="Weight of |G(b) - b|; used only with identity and where the generator adds to its input.",
    )
    patches: int = Field(256, ge=2, le=4096, description="Positions of an image that are contrasted, for each layer.")
    temperature: float = Field(
        0.07, gt=0, le=10, description="Temperature of the contrastive softmax; smaller separates patches more."
    )
    flip_equivariance: bool = Field(False, description="Mirror the images of every second update, as in FastCUT.")


class Heads(nn.Module):
    """For each layer an MLP of two layers: features of a position in, a unit vector out (Park et al. 2020, sec. 3)."""

    training_only = True

    def __init__(self, widths: list[int], size: int = 256):
        super().__init__()
        heads = (nn.Sequential(nn.Linear(width, size), nn.ReLU(), nn.Linear(size, size)) for width in widths)
        self.heads = nn.ModuleList(heads)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0.0, 0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, maps: list[Tensor], positions: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H, W) and indices (P,) into H*W -> unit vectors (B, P, size)."""
        vectors = []
        for head, features, index in zip(self.heads, maps, positions, strict=True):
            rows = features.flatten(2)[..., index].transpose(1, 2)
            vectors.append(F.normalize(head(rows), dim=-1, eps=1e-7))
        return vectors


def patch_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a position's own key among all positions of the image (Park et al. 2020, eq. 3).

    Unit vectors (B, P, D) twice -> scalar, the mean over positions and images.
    """
    logits = queries @ keys.transpose(1, 2) / temperature
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


class CUT(TranslationBase):
    """One generator and one discriminator: about twice as fast as CycleGAN, and no way back to hide information for."""

    name = "cut"
    summary = "Translates one way between two sets of images without pairs, faster than CycleGAN."
    lecture = "CycleGAN"
    layouts = ("unpaired",)
    needs = ("a", "b")
    Config = CUTConfig
    residual = True
    default_epochs = 40
    default_batch = 2
    milliseconds = 40.0

    def __init__(self, config: CUTConfig, data: DataSpec):
        super().__init__(config, data)
        self.directions, self.patch_domains = (config.direction,), (config.direction[1],)
        generator = make_generator("resnet", data.channels, data.channels, (data.height, data.width), config.width)
        self.generators = nn.ModuleDict({config.direction: generator})
        self.served = nn.ModuleDict({config.direction: Ema(generator, half_life=693 * config.batch_size)})
        self.judges = nn.ModuleDict(
            {config.direction[1]: initialise(PatchGAN(data.channels, config.width, config.patch_layers))}
        )
        self.apply_residual()
        self.heads = Heads([data.channels, config.width, 2 * config.width, 4 * config.width, 4 * config.width])

    def forward_passes(self) -> list[tuple[nn.Module, str]]:
        generators = self.generators.values()
        return [*learned_passes(self), *((generator.network, "features") for generator in generators)]

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        optimisers = super().optimisers()
        optimisers["generators"].add_param_group({"params": list(self.heads.parameters())})
        return optimisers

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        batch = self.augmented(batch, context)
        config, (source, target) = self.config, self.config.direction
        generator, real = self.generators[config.direction], batch[target]
        inputs = torch.cat([batch[source], real]) if config.identity else batch[source]
        if config.flip_equivariance and context.step % 2:
            inputs, real = inputs.flip(3), real.flip(3)
        outputs = generator(inputs)
        fake, same = outputs.split([len(batch[source]), len(outputs) - len(batch[source])])
        metrics = {"judge": update(optimisers["judges"], self.d_loss(target, real, fake.detach()))}
        with frozen(self.judges[target]):
            g_adv = self.g_adv(target, fake)
            nce = self.contrast(generator, inputs, outputs, context)
            terms, reported = self.g_regularisers(nce, same, real)
            total = sum(terms, g_adv)
            update(optimisers["generators"], total)
        self.served[config.direction].update(generator, config.batch_size, context.images)
        return metrics | {"loss": total.detach(), "fool": g_adv.detach(), **reported}

    def g_regularisers(self, nce: Tensor, same: Tensor, real: Tensor) -> tuple[list[Tensor], Metrics]:
        """lambda_nce * PatchNCE, and lambda_identity * |G(b) - b| where the generator adds to its input."""
        terms = [self.config.lambda_nce * nce]
        if self.config.identity and self.adds_to_input:
            terms.append(self.config.lambda_identity * self.pixel_distance(same, real))
        return terms, {"nce": nce.detach()}

    def contrast(self, generator: PaddedGenerator, inputs: Tensor, outputs: Tensor, context: StepContext) -> Tensor:
        """PatchNCE over the layers of the generator's first half (Park et al. 2020, eq. 4)."""
        with torch.no_grad():
            input_features = generator.network.features(generator.padded(inputs))
        output_features = generator.network.features(generator.padded(outputs))
        positions = [self._positions(features, context.generator) for features in input_features]
        with torch.no_grad():
            keys = self.heads(input_features, positions)
        queries = self.heads(output_features, positions)
        losses = [patch_nce(*each, self.config.temperature) for each in zip(queries, keys, strict=True)]
        return torch.stack(losses).mean()

    def _positions(self, features: Tensor, draws: torch.Generator) -> Tensor:
        total = features[0, 0].numel()
        return torch.randperm(total, generator=draws, device=features.device)[: self.config.patches]

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """Mean change of an image and, with twins, the distance to the true translation."""
        forward = partial(self.translate, direction=self.config.direction)
        report = mean_change(forward, train, validation, *self.config.direction)
        if self.data.twins:
            report |= evaluate_on_pairs(forward, train, validation, *self.config.direction, paired=False)
        return report

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """Rows of input and translation."""
        source, _ = self.config.direction
        images = probe[source][:16]
        return torch.stack([images, self.translate(images, self.config.direction)], 1).flatten(0, 1)
