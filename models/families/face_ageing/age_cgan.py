"""The same face at another age: a conditional GAN over age groups, and networks that find a face's latents
(Antipov, Baccouche & Dugelay 2017).

Training has three stages, by the count of images: the two players of the GAN; the encoder, on pictures that the
finished generator makes; and, on the images themselves, the networks that read the age and the identity. The fourth,
the search for the latents of one face, belongs to the request (models/operations/age.py).
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
from models.families.face_ageing.config import AgeCGANConfig, grouped, groups_asked, identity_source, players_config
from models.families.face_ageing.identity import FEATURES, AdoptedSight, Sight, TrunkSpec, changed, contrast
from models.families.face_ageing.latent_search import ageing_report
from models.families.gans.conditional_gan import ConditionalGAN, ConditionalGANConfig
from models.families.gans.conditioning import as_tensor
from models.families.gans.conv_networks import widths
from models.family import Family
from models.losses.adversarial import update
from models.types import Batch, ConfigError, DataSpec, Metrics

STAGES = ("players", "encoder", "recognisers")
READER_WIDTH = 16
RATES = {"encoder": 1e-3, "recognisers": 2e-3}
PEOPLE = 8  # of a snapshot


class AgeCGAN(Ages, Conditional, HasPrior, Decodes, Discriminates, Family):
    """Age groups are the labels. `gan` is the first stage and what draws; the other networks only look."""

    name = "age_cgan"
    summary = "Shows a face at another age while it stays the same person."
    lecture = "Face ageing with conditional GANs"
    layouts = ("attributes", "labelled")
    Config = AgeCGANConfig
    config: AgeCGANConfig

    def __init__(self, config: AgeCGANConfig, data: DataSpec):
        super().__init__(config, data)
        self.bounds = self._bounds()
        self.gan = ConditionalGAN(players_config(config, self.bounds[0]), grouped(config, data))
        self.latent_dim = config.latent_dim
        groups = len(self.age_groups)
        # as wide as the generator, whose pictures it takes apart
        self.encoder = Sight(data.shape, config.latent_dim, max(READER_WIDTH, widths(1, config.width)[0]))
        self.reader = Sight(data.shape, groups, READER_WIDTH)
        self.identifier = self._identifier()
        self.register_buffer("adopted", torch.zeros((), dtype=torch.bool))
        self.stage = STAGES[0]

    @classmethod
    def resolve_config(cls, config: AgeCGANConfig, data: DataSpec) -> AgeCGANConfig:
        condition, boundaries = groups_asked(config, data)
        chosen = {"condition": condition, "boundaries": boundaries, "identity": identity_source(config, data)}
        players = config.model_copy(update={**chosen, "images": config.images or cls._length(config, data)})
        whole = super().resolve_config(players, data)
        gan = ConditionalGAN.resolve_config(players_config(whole), grouped(whole, data))
        shared = {name: getattr(gan, name) for name in ConditionalGANConfig.model_fields}
        return whole.model_copy(update={**shared, "images": whole.images, "condition": condition})

    @classmethod
    def _length(cls, config: AgeCGANConfig, data: DataSpec) -> int:
        """So long that the players get what they get in a family of their own."""
        share = 1 - config.encoder_share - config.recogniser_share
        epochs = config.epochs or ConditionalGAN.default_epochs_for(data) / share
        return max(2, round(epochs * max(data.count, 1)))

    def _bounds(self) -> tuple[int, int]:
        """Images after which the encoder and the recognisers have their turn, each stage one update at least."""
        config, size = self.config, self.config.batch_size
        updates = self.total // size
        last = min(max(round(updates * (1 - config.recogniser_share)), 2), max(updates - 1, 1))
        first = round(updates * (1 - config.recogniser_share - config.encoder_share))
        return max(1, min(first, last - 1)) * size, max(1, last) * size

    def _identifier(self) -> nn.Module:
        spec = self.config.identity_network
        return AdoptedSight(spec) if spec else Sight(self.data.shape, FEATURES, READER_WIDTH)

    # Training

    def grow_to(self, images: int) -> None:
        self.stage = STAGES[sum(images >= bound for bound in self.bounds)]

    def init_from(self, other: Family) -> None:
        """Start from a model of this family, or take over a classifier of identities as the identity network."""
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
        """Count the groups: a rare one is shown as often as the others."""
        self.gan.before_training(train)
        labels = as_tensor(self._columns(train).columns["labels"]).long()
        counts = torch.bincount(labels, minlength=len(self.age_groups))
        self._rarity = 1 / counts.clamp_min(1).to(self.device, torch.float32)

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        recognisers = [*self.reader.parameters(), *([] if self.adopted else self.identifier.parameters())]
        others = {"encoder": list(self.encoder.parameters()), "recognisers": recognisers}
        return {
            **self.gan.optimisers(),
            **{name: torch.optim.Adam(each, RATES[name], fused=True) for name, each in others.items()},
        }

    def schedule(self, progress: float) -> float:
        images = progress * self.total
        start, end = self._span(images)
        share = (images - start) / max(end - start, 1)
        if images < self.bounds[0]:
            return self.gan.schedule(share)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))

    def _span(self, images: float) -> tuple[int, int]:
        """Where the stage at `images` begins and ends."""
        ends = (0, *self.bounds, self.total)
        place = sum(images >= bound for bound in self.bounds)
        return ends[place], ends[place + 1]

    def step(self, batch: Batch, optimisers: dict[str, torch.optim.Optimizer], context: StepContext) -> Metrics:
        if self.config.identity == "model" and not self.adopted:
            raise ConfigError(
                "identity=model needs the name of a classifier of identities in init_from", field="identity"
            )
        start, end = self._span(context.images)
        done = context.images - start
        here = replace(context, images=done, total=end - start, step=done // self.config.batch_size)
        if self.stage == "players":
            return self.gan.step(self._evened(self._with_groups(batch), here), optimisers, here)
        if self.stage == "encoder":
            if done == 0:
                self._finish_players(here)
            return self._teach_encoder(optimisers["encoder"], here)
        return self._teach_recognisers(batch, optimisers["recognisers"], here)

    def _finish_players(self, context: StepContext) -> None:
        """The averaged generator gets statistics of its own: from here on its pictures stay what they are."""
        self.gan.recalibrate_batch_norm(self.gan.ema.module, context)

    def _teach_encoder(self, optimiser: torch.optim.Optimizer, context: StepContext) -> Metrics:
        """|z - E(G(z, y))|^2 over pictures made on the fly, of all ages alike (eq. 2 of the paper)."""
        count, draws = self.config.batch_size, context.generator
        latents = self.gan.to_latents(self.gan.noise(count, draws))
        groups = torch.randint(len(self.age_groups), (count,), generator=draws, device=draws.device)
        with torch.no_grad():
            pictures = self.gan.decode(latents, groups)
        loss = (latents - self.encoder(pictures)).square().mean()
        return {"loss_encoder": update(optimiser, loss)}

    def _teach_recognisers(self, batch: Batch, optimiser: torch.optim.Optimizer, context: StepContext) -> Metrics:
        """The age by cross-entropy; the identity by contrast, of persons or of single images."""
        images, draws = batch["images"], context.generator
        even = self._evened(self._with_groups(batch), context)
        logits = self.reader(changed(even["images"], draws))
        age = F.cross_entropy(logits, even["labels"])
        found = {"loss_age": age.detach(), "age_accuracy": (logits.argmax(1) == even["labels"]).float().mean()}
        if self.adopted:
            update(optimiser, age)
            return found
        by_person = self.config.identity == "labels"
        people = batch["identities"] if by_person else torch.arange(len(images), device=images.device)
        views = torch.cat([changed(images, draws), changed(images, draws)])
        identity = contrast(self.identifier(views), people.repeat(2))
        update(optimiser, age + identity)
        return found | {"loss_identity": identity.detach()}

    def _groups(self, batch: Batch) -> Tensor:
        if self.config.condition == "labels":
            return batch["labels"]
        return groups_of(batch["ages"], self.config.boundaries)

    def _with_groups(self, batch: Batch) -> Batch:
        return {"images": batch["images"], "labels": self._groups(batch)}

    def _evened(self, batch: Batch, context: StepContext) -> Batch:
        """As many rows, drawn anew so that every group of the batch is as likely to come."""
        rows = torch.multinomial(
            self._rarity[batch["labels"]], len(batch["labels"]), replacement=True, generator=context.generator
        )
        return {name: column[rows] for name, column in batch.items()}

    def _columns(self, columns: Columns) -> Columns:
        """The same images with their groups as labels."""
        if self.config.condition == "labels":
            labels = columns.columns["labels"]
        else:
            labels = groups_of(as_tensor(columns.columns["ages"]), self.config.boundaries)
        return Columns({"images": columns.columns["images"], "labels": labels})

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.gan.condition.fit(self._columns(train))
        if self.bounds[0] >= self.total:
            self._finish_players(context)

    def evaluate(self, train: Columns, validation: Columns, context: StepContext) -> dict[str, float]:
        """The numbers of `conditional_gan` over age groups, and how well faces age and stay who they are."""
        train, validation = self._columns(train), self._columns(validation)
        return self.gan.evaluate(train, validation, context) | ageing_report(self, train, validation)

    def warnings(self, measured: dict[str, float]) -> list[str]:
        if self.config.identity != "images":
            return []
        return [
            "The dataset has no identities that could teach who is who, so the identity network tells single images "
            "apart; an identity column in labels.csv, or a classifier of identities as init_from, makes it better."
        ]

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        """At first samples, group by group; later a face and its first guesses at all ages, a row each."""
        if self.stage == "players":
            return self.gan.snapshot(self._with_groups(probe), context)
        images = probe["images"][:PEOPLE]
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
        """The encoder's latents, brought to the length that the generator is used to."""
        found = self.encoder(images)
        usual = math.sqrt(1 / 3) if self.config.latent == "uniform" else 1.0
        return usual * found * torch.rsqrt(found.square().mean(1, keepdim=True) + 1e-8)

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
