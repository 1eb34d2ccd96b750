"""Face ageing: a conditional GAN over age groups, and networks that find the latents of a face (Antipov et al. 2017).

Training has three stages, by the count of images: the GAN; the encoder, on images from the trained generator; and the
networks that read age and identity, on the training images. The search for the latents of one face is part of each
request (models/operations/age.py).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.capabilities import Ages, Conditional, Decodes, Discriminates, HasPrior
from models.context import StepContext
from models.data import Columns
from models.families.classifiers.base import ClassifierBase
from models.families.face_ageing.age_groups import group_named, groups_of
from models.families.face_ageing.config import (
    AgeCGANConfig,
    condition_and_boundaries,
    gan_config,
    identity_source,
    with_groups_as_classes,
)
from models.families.face_ageing.identity import (
    FEATURES,
    ClassifierTrunk,
    SmallResNet,
    TrunkSpec,
    supervised_contrastive_loss,
)
from models.families.face_ageing.latent_search import evaluate_ageing
from models.families.gans.conditional_gan import ConditionalGAN, ConditionalGANConfig
from models.families.gans.conditioning import as_tensor
from models.families.gans.conv_networks import widths
from models.family import Family
from models.losses.adversarial import update
from models.nn.augment import jitter
from models.training.ranks import follow_first, rank_count
from models.types import Batch, ConfigError, DataSpec, Metrics

STAGES = ("gan", "encoder", "recognisers")
READER_WIDTH = 16
LEARNING_RATES = {"encoder": 1e-3, "recognisers": 2e-3}
SNAPSHOT_FACES = 8


class AgeCGAN(Ages, Conditional, HasPrior, Decodes, Discriminates, Family):
    """Labels are age groups. `gan` generates; encoder, age reader and identity network only read images."""

    name = "age_cgan"
    summary = "Shows a face at another age while it stays the same person."
    lecture = "Face ageing with conditional GANs"
    layouts = ("attributes", "labelled")
    Config = AgeCGANConfig
    milliseconds = 1.35
    config: AgeCGANConfig
    bf16_on = ConditionalGAN.bf16_on

    def __init__(self, config: AgeCGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.bounds = self._bounds()
        self.gan = ConditionalGAN(gan_config(config, self.bounds[0]), with_groups_as_classes(config, data))
        self.latent_dim = config.latent_dim
        groups = len(self.age_groups)
        # as wide as the generator that it inverts
        self.encoder = SmallResNet(data.shape, config.latent_dim, max(READER_WIDTH, widths(1, config.width)[0]))
        self.reader = SmallResNet(data.shape, groups, READER_WIDTH)
        self.identifier = self._identifier()
        self.register_buffer("adopted", torch.zeros((), dtype=torch.bool))
        self.stage = STAGES[0]

    @classmethod
    def resolve_config(cls, config: AgeCGANConfig, data: DataSpec) -> AgeCGANConfig:
        condition, boundaries = condition_and_boundaries(config, data)
        update = {"condition": condition, "boundaries": boundaries, "identity": identity_source(config, data)}
        config = super().resolve_config(config.model_copy(update=update), data)
        gan = ConditionalGAN.resolve_config(gan_config(config), with_groups_as_classes(config, data))
        shared = {name: getattr(gan, name) for name in ConditionalGANConfig.model_fields}
        return config.model_copy(update={**shared, "images": config.images, "condition": condition})

    @classmethod
    def full_length(cls, config: AgeCGANConfig, data: DataSpec) -> float:
        """The length at which the GAN's stage is as long as a training of conditional_gan."""
        return ConditionalGAN.full_length(config, data) / (1 - config.encoder_share - config.recogniser_share)

    def _bounds(self) -> tuple[int, int]:
        """Counts of images at which the second and the third stage begin; each stage has at least one update."""
        config, size = self.config, self.config.batch_size
        updates = self.total // size
        last = min(max(round(updates * (1 - config.recogniser_share)), 2), max(updates - 1, 1))
        first = round(updates * (1 - config.recogniser_share - config.encoder_share))
        return max(1, min(first, last - 1)) * size, max(1, last) * size

    def _identifier(self) -> nn.Module:
        spec = self.config.identity_network
        return ClassifierTrunk(spec) if spec else SmallResNet(self.data.shape, FEATURES, READER_WIDTH)

    # Training

    def grow_to(self, images: int) -> None:
        self.stage = STAGES[sum(images >= bound for bound in self.bounds)]

    def init_from(self, other: Family) -> None:
        """Start from the weights of an age_cgan, or use the trunk of a classifier as identity network."""
        if not isinstance(other, ClassifierBase) or not hasattr(other, "logits"):
            super().init_from(other)
            return
        spec = TrunkSpec.of(other.config, other.data)
        self.config = self.config.model_copy(update={"identity": "model", "identity_network": spec})
        self.identifier = self._identifier().to(other.device)
        self.identifier.trunk.load_state_dict(other.trunk.state_dict())
        self.identifier.requires_grad_(False)
        self.adopted.fill_(True)

    def before_training(self, train: Columns) -> None:
        """Count the groups, so that batches show all of them equally often."""
        self.gan.before_training(train)
        labels = as_tensor(self._columns(train).columns["labels"]).long()
        counts = torch.bincount(labels, minlength=len(self.age_groups))
        self._group_weights = 1 / counts.clamp_min(1).to(self.device, torch.float32)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        recognisers = [*self.reader.parameters(), *([] if self.adopted else self.identifier.parameters())]
        others = {"encoder": list(self.encoder.parameters()), "recognisers": recognisers}
        return {
            **self.gan.optimisers(),
            **{name: torch.optim.Adam(weights, LEARNING_RATES[name], fused=True) for name, weights in others.items()},
        }

    def schedule(self, progress: float) -> float:
        images = progress * self.total
        start, end = self._span(images)
        progress = (images - start) / max(end - start, 1)  # of the stage
        if images < self.bounds[0]:
            return self.gan.schedule(progress)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))

    def _span(self, images: float) -> tuple[int, int]:
        """Counts of images at which the stage at `images` begins and ends."""
        ends = (0, *self.bounds, self.total)
        stage = sum(images >= bound for bound in self.bounds)
        return ends[stage], ends[stage + 1]

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        if self.config.identity == "model" and not self.adopted:
            raise ConfigError(
                "identity=model needs a classifier of identities",
                field="identity",
                remedy="name a trained classifier of identities in init_from",
            )
        start, end = self._span(context.images)
        images = context.images - start
        of_stage = replace(context, images=images, total=end - start, step=images // self.config.batch_size)
        if self.stage == "gan":
            return self.gan.step(self._balanced(self._with_groups(batch), of_stage), optimisers, of_stage)
        if self.stage == "encoder":
            if images == 0:
                self._finish_gan(of_stage)
            return self._update_encoder(optimisers["encoder"], of_stage)
        return self._update_recognisers(batch, optimisers["recognisers"], of_stage)

    def _finish_gan(self, context: StepContext) -> None:
        """Give the averaged generator its own batch norm statistics; from here on its images do not change."""
        self.gan.recalibrate_batch_norm(self.gan.ema.module, context)
        follow_first(self.gan.ema.module.buffers())

    def _update_encoder(self, optimiser: torch.optim.Optimizer, context: StepContext) -> Metrics:
        """L_E = |z - E(G(z, y))|^2, averaged over dimensions, z and uniform y (Antipov et al. 2017, eq. 2)."""
        count, draws = self.config.batch_size // rank_count(), context.generator
        latents = self.gan.to_latents(self.gan.noise(count, draws))
        groups = torch.randint(len(self.age_groups), (count,), generator=draws, device=draws.device)
        with torch.no_grad():
            images = self.gan.decode(latents, groups)
        loss = (latents - self.encoder(images)).square().mean()
        return {"loss_encoder": update(optimiser, loss)}

    def _update_recognisers(self, batch: Batch, optimiser: torch.optim.Optimizer, context: StepContext) -> Metrics:
        """Cross-entropy of the age; supervised contrastive loss of the identity, or of single images without one."""
        images, draws = batch["images"], context.generator
        balanced = self._balanced(self._with_groups(batch), context)
        logits, groups = self.reader(jitter(balanced["images"], draws)), balanced["labels"]
        age_loss = F.cross_entropy(logits, groups)
        metrics = {"loss_age": age_loss.detach(), "age_accuracy": (logits.argmax(1) == groups).float().mean()}
        if self.adopted:
            update(optimiser, age_loss)
            return metrics
        by_person = self.config.identity == "labels"
        identities = batch["identities"] if by_person else torch.arange(len(images), device=images.device)
        views = torch.cat([jitter(images, draws), jitter(images, draws)])
        identity_loss = supervised_contrastive_loss(self.identifier(views), identities.repeat(2))
        update(optimiser, age_loss + identity_loss)
        return metrics | {"loss_identity": identity_loss.detach()}

    def _groups(self, batch: Batch) -> Tensor:
        if self.config.condition == "labels":
            return batch["labels"]
        return groups_of(batch["ages"], self.config.boundaries)

    def _with_groups(self, batch: Batch) -> Batch:
        return {"images": batch["images"], "labels": self._groups(batch)}

    def _balanced(self, batch: Batch, context: StepContext) -> Batch:
        """As many rows, drawn with replacement, with weights inverse to the frequency of their group."""
        rows = torch.multinomial(
            self._group_weights[batch["labels"]], len(batch["labels"]), replacement=True, generator=context.generator
        )
        return {name: column[rows] for name, column in batch.items()}

    def _columns(self, columns: Columns) -> Columns:
        """The images, with their groups as labels."""
        if self.config.condition == "labels":
            labels = columns.columns["labels"]
        else:
            labels = groups_of(as_tensor(columns.columns["ages"]), self.config.boundaries)
        return Columns({"images": columns.columns["images"], "labels": labels})

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.gan.condition.fit(self._columns(train))
        if self.bounds[0] >= self.total:
            self._finish_gan(context)

    def calibrate(self, train: Columns, validation: Columns, context: StepContext) -> None:
        self.gan.calibrate(self._columns(train), self._columns(validation), context)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """The measures of conditional_gan over age groups, and those of `evaluate_ageing`."""
        train, validation = self._columns(train), self._columns(validation)
        return self.gan.evaluate(train, validation, context) | evaluate_ageing(self, train, validation)

    def warnings(self, measured: dict[str, float]) -> list[str]:
        if self.config.identity != "images":
            return []
        return [
            "The dataset has no repeated identities, so the identity network learned to tell single images apart. Add "
            "an identity column to labels.csv, or name a classifier of identities in init_from."
        ]

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """In the first stage samples of each group; later, per row, a face and its reconstruction at every age."""
        if self.stage == "gan":
            return self.gan.snapshot(self._with_groups(probe), context)
        images = probe["images"][:SNAPSHOT_FACES]
        latents = self.encode(images)
        aged = [self.decode(latents, torch.full((len(images),), group)) for group in range(len(self.age_groups))]
        return torch.stack([images, *aged], 1).flatten(0, 1)

    # Serving

    def draw(self, noise: Tensor, uniform: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.gan.draw(noise, uniform, labels)

    @property
    def spherical(self) -> bool:
        return self.gan.spherical

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.gan.decode(latents, labels)

    def real_log_odds(self, images: Tensor) -> Tensor:
        return self.gan.real_log_odds(images)

    def encode(self, images: Tensor) -> Tensor:
        """The encoder's latents, scaled to the root mean square of the latents in training."""
        latents = self.encoder(images)
        rms = math.sqrt(1 / 3) if self.config.latent == "uniform" else 1.0
        return rms * latents * torch.rsqrt(latents.square().mean(1, keepdim=True) + 1e-8)

    def age_logits(self, images: Tensor) -> Tensor:
        return self.reader(images)

    def identity_features(self, images: Tensor) -> Tensor:
        return self.identifier(images)

    @property
    def age_groups(self) -> tuple[str, ...]:
        return self.gan.data.classes

    def age_group(self, given: str) -> int:
        return group_named(given, self.age_groups, self.config.boundaries)

    def label(self, given: str | int) -> int:
        return self.gan.label(given)

    def example_labels(self, count: int) -> Tensor:
        return self.gan.example_labels(count)

    def describe_labels(self, labels: Tensor) -> list[dict]:
        return self.gan.describe_labels(labels)
