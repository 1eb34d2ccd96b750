"""A generator asked for a class, or a number, against a discriminator told which (Mirza & Osindero 2014)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Conditional
from models.context import StepContext
from models.data import Columns
from models.evaluation.fidelity import Fidelity
from models.evaluation.metrics import CHUNK
from models.families.gans.base import Shown
from models.families.gans.condition_agreement import class_agreement, number_agreement
from models.families.gans.conditioning import ClassCondition, NumberCondition
from models.families.gans.config import clash
from models.families.gans.conv_networks import ConvDiscriminator, ConvGenerator
from models.families.gans.layers import latents_of
from models.families.gans.mlp_networks import FlatDiscriminator, FlatGenerator
from models.families.gans.presets import BodyConfig, resolve_bodies
from models.families.gans.sampling import PICTURES, Generative
from models.nn.image_pool import ImagePool
from models.types import Batch, DataError, DataSpec, InputError

POINTS = 9  # numbers that show what there is


class ConditionalGANConfig(BodyConfig):
    """The tricks of `gan`, and how the condition enters."""

    body: Literal["stable", "dcgan", "mlp"] | None = Field(
        None, description="stable: the default; dcgan: the 2016 reference; mlp: the 2014 paper."
    )
    condition: Literal["labels", "targets"] | None = Field(None, description="Column that is asked for.")
    conditioning: Literal["projection", "concatenation"] | None = Field(
        None,
        description="projection: gain and shift of G's norms, and a projection on D's features; "
        "concatenation: beside the noise and the image, as in the paper.",
    )
    balanced: bool = Field(False, description="Fakes are asked for all classes alike, not as common as in the data.")


class ConditionalGAN(Conditional, Generative):
    """Labels are class indices (int64), or numbers (float) with `condition=targets`."""

    name = "conditional_gan"
    summary = "Draws new images of a class, or for a number, that is asked for."
    lecture = "Conditional generative adversarial networks"
    layouts = ("labelled", "attributes")
    Config = ConditionalGANConfig
    config: ConditionalGANConfig

    def __init__(self, config: ConditionalGANConfig, data: DataSpec):
        super().__init__(config, data)
        row = data.pixels + self.condition.width
        self.replay = ImagePool(config.replay, (1, 1, row)) if config.replay else None

    @classmethod
    def resolve_config(cls, config: ConditionalGANConfig, data: DataSpec) -> ConditionalGANConfig:
        config = resolve_bodies(super().resolve_config(config, data), data)
        columns = data.columns.get("train", {})
        condition = config.condition or ("labels" if data.classes else "targets")
        if (condition == "labels" and not data.classes) or (condition not in columns and columns):
            raise DataError(
                f"conditional_gan needs {condition}, which this dataset lacks",
                field="dataset",
                remedy="use a labelled dataset, an attributes dataset with targets, or the family gan",
            )
        conditioning = config.conditioning or ("concatenation" if config.body == "mlp" else "projection")
        if conditioning == "projection" and config.body == "mlp":
            raise clash("body=mlp", "conditioning=projection", "there are no maps to project on")
        if conditioning == "projection" and config.generator_norm != "batch":
            why = "the label enters the generator through its batch norms"
            raise clash(f"generator_norm={config.generator_norm}", "conditioning=projection", why)
        return config.model_copy(update={"condition": condition, "conditioning": conditioning})

    def players(self) -> tuple[nn.Module, nn.Module]:
        config, shape = self.config, self.data.shape
        classes = config.condition == "labels"
        self.condition = (
            ClassCondition(len(self.data.classes), config.balanced) if classes else NumberCondition(config.balanced)
        )
        width = self.condition.width
        if config.body == "mlp":
            return FlatGenerator(config, shape, width), FlatDiscriminator(config, shape, width)
        ways = (width, 0) if config.conditioning == "concatenation" else (0, width)
        return ConvGenerator(config, shape, *ways), ConvDiscriminator(config, shape, *ways)

    # Training

    @property
    def spherical(self) -> bool:
        return self.config.latent == "sphere"

    def codes(self, noise: Tensor) -> Tensor:
        return latents_of(noise, self.config.latent)

    def step(self, batch: Batch, optimisers: dict, context: StepContext) -> dict:
        self.condition.observe(batch[self.condition.column])
        return super().step(batch, optimisers, context)

    def asked(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        labels = batch[self.condition.column]
        return self.condition(labels), self.condition(self.condition.others(labels, context.generator))

    def remembered(self, fakes: Shown, context: StepContext) -> Shown:
        if self.replay is None:
            return fakes
        rows = torch.cat([fakes.images.flatten(1), fakes.told], 1)[:, None, None]
        images, told = self.replay.exchange(rows, context.generator)[:, 0, 0].tensor_split([self.data.pixels], 1)
        return Shown(images.unflatten(1, self.data.shape), told)

    # Serving

    def draw(self, noise: Tensor, uniform: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.codes(noise)

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.pictures(self.ema(latents, self.condition(labels)))

    def judgement(self, images: Tensor) -> Tensor:
        """D's logits; as no label comes along, those of all labels there are, weighed by how common they are."""
        player, logits = self.discriminator, []
        labels, shares = self._candidates()
        features = None if player.joined else player.features(images)
        for label in labels:
            told = self.condition(label.expand(images.shape[0]))
            logits.append(player.judge(player.features(images, told) if features is None else features, told))
        return torch.logsumexp(torch.stack(logits, 1) + shares.log(), 1)

    def _candidates(self) -> tuple[Tensor, Tensor]:
        """Labels (k,) and the share of each."""
        if self.config.condition == "labels":
            shares = self.condition.marginal.clamp_min(1e-6)
            return torch.arange(len(shares), device=self.device), shares / shares.sum()
        labels = self.example_labels(POINTS).to(self.device)
        return labels, torch.full((POINTS,), 1 / POINTS, device=self.device)

    def specimens(self, generator: nn.Module, count: int, context: StepContext, labels: Tensor | None = None) -> Tensor:
        draws = context.generator
        latents = self.codes(self.noise(count, draws))
        if labels is None:
            labels = self.condition.drawn(torch.rand(count, generator=draws, device=draws.device))
        return self.pictures(generator(latents, self.condition(labels)))

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        labels = self.example_labels(PICTURES).to(self.device)
        return self.specimens(self.present(context), PICTURES, context, labels)

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.condition.fit(train)
        super().after_training(train, context)

    def condition_agreement(
        self, measure: Fidelity, train: Columns, validation: Columns, context: StepContext
    ) -> dict[str, float]:
        labels = self.example_labels(measure.count).to(self.device)
        chunks = [self.specimens(self.ema.module, len(part), context, part).cpu() for part in labels.split(CHUNK)]
        found, labels = torch.cat(chunks), labels.cpu()
        if self.config.condition == "targets":
            return number_agreement(measure, train, validation, found, labels)
        return class_agreement(measure, validation, found, labels) if measure.labelled else {}

    def label(self, given: str | int) -> int | float:
        if self.config.condition == "labels":
            return super().label(given)
        try:
            value = float(given)
        except ValueError:
            value = float("nan")
        if abs(value) < 1e30:  # not for nan
            return value
        raise InputError("this model is asked for a number", field="label")

    def example_labels(self, count: int) -> Tensor:
        if self.config.condition == "labels":
            return super().example_labels(count)
        places = (torch.arange(count) % POINTS + 0.5) / POINTS
        return self.condition.drawn(places.to(self.device)).cpu()

    def describe_labels(self, labels: Tensor) -> list[dict]:
        if self.config.condition == "labels":
            return super().describe_labels(labels)
        return [{"label": value} for value in labels.tolist()]
