"""A GAN whose images are requested by class or by number, a condition that D gets as well (Mirza & Osindero 2014)."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from models.capabilities import Conditional
from models.context import StepContext
from models.data import Columns
from models.evaluation.fidelity import Fidelity
from models.evaluation.metrics import CHUNK
from models.families.gans.base import SNAPSHOT_IMAGES, GANBase
from models.families.gans.condition_agreement import class_agreement, number_agreement
from models.families.gans.conditioning import ClassCondition, NumberCondition
from models.families.gans.config import conflict
from models.families.gans.conv_networks import ConvDiscriminator, ConvGenerator
from models.families.gans.layers import latents_of
from models.families.gans.mlp_networks import MLPDiscriminator, MLPGenerator
from models.families.gans.presets import NetworkConfig, resolve_networks
from models.families.gans.updates import DInput
from models.nn.image_pool import ImagePool
from models.types import Batch, DataError, DataSpec, InputError

EXAMPLE_NUMBERS = 9  # quantiles of the training numbers, as examples of labels


class ConditionalGANConfig(NetworkConfig):
    """The settings of `gan`, and how the condition enters the networks."""

    body: Literal["stable", "dcgan", "mlp"] | None = Field(
        None,
        description="Architecture of both networks. stable: convolutions; dcgan: Radford et al. 2016; mlp: fully "
        "connected, Goodfellow et al. 2014. Default: chosen from the dataset (mlp below 8 pixels, else stable).",
    )
    condition: Literal["labels", "targets"] | None = Field(
        None,
        description="Column of the condition. Default: chosen from the dataset (labels with classes, else targets).",
    )
    conditioning: Literal["projection", "concatenation"] | None = Field(
        None,
        description="How the condition enters. projection: it sets scale and shift of G's batch norms and is projected "
        "on D's features; concatenation: it is appended to the latents and to the image. Default: concatenation with "
        "body=mlp, else projection.",
    )
    balanced: bool = Field(
        False,
        description="Train G on all classes equally often (targets: evenly over their range), not as in the data.",
    )


class ConditionalGAN(Conditional, GANBase):
    """Labels are class indices (int64), or numbers (float) with `condition=targets`."""

    name = "conditional_gan"
    summary = "Generates new images of a requested class, or for a requested number."
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
        config = resolve_networks(super().resolve_config(config, data), data)
        columns = data.columns.get("train", {})
        condition = config.condition or ("labels" if data.classes else "targets")
        if (condition == "labels" and not data.classes) or (condition not in columns and columns):
            raise DataError(
                f"conditional_gan needs the column {condition}, which this dataset lacks",
                field="dataset",
                remedy="use a labelled dataset, an attributes dataset with targets, or the family gan",
            )
        conditioning = config.conditioning or ("concatenation" if config.body == "mlp" else "projection")
        if conditioning == "projection" and config.body == "mlp":
            raise conflict("body=mlp", "conditioning=projection", "this architecture has no feature maps to project on")
        if conditioning == "projection" and config.generator_norm != "batch":
            why = "the condition enters the generator through its batch norms"
            raise conflict(f"generator_norm={config.generator_norm}", "conditioning=projection", why)
        return config.model_copy(update={"condition": condition, "conditioning": conditioning})

    def build_networks(self) -> tuple[nn.Module, nn.Module]:
        config, shape = self.config, self.data.shape
        by_class = config.condition == "labels"
        self.condition = (
            ClassCondition(len(self.data.classes), config.balanced) if by_class else NumberCondition(config.balanced)
        )
        width = self.condition.width
        if config.body == "mlp":
            return MLPGenerator(config, shape, width), MLPDiscriminator(config, shape, width)
        dims = (width, 0) if config.conditioning == "concatenation" else (0, width)
        return ConvGenerator(config, shape, *dims), ConvDiscriminator(config, shape, *dims)

    # Training

    @property
    def spherical(self) -> bool:
        return self.config.latent == "sphere"

    def to_latents(self, noise: Tensor) -> Tensor:
        return latents_of(noise, self.config.latent)

    def step(self, batch: Batch, optimisers: dict, context: StepContext) -> dict:
        self.condition.observe(batch[self.condition.column])
        return super().step(batch, optimisers, context)

    def conditions(self, batch: Batch, context: StepContext) -> tuple[Tensor, Tensor]:
        labels = batch[self.condition.column]
        return self.condition(labels), self.condition(self.condition.for_fakes(labels, context.generator))

    def replay_fakes(self, fakes: DInput, context: StepContext) -> DInput:
        if self.replay is None:
            return fakes
        rows = torch.cat([fakes.images.flatten(1), fakes.condition], 1)[:, None, None]
        images, condition = self.replay.exchange(rows, context.generator)[:, 0, 0].tensor_split([self.data.pixels], 1)
        return DInput(images.unflatten(1, self.data.shape), condition)

    # Serving

    def draw(self, noise: Tensor, uniform: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.to_latents(noise)

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.to_unit_range(self.ema(latents, self.condition(labels)))

    def d_logits(self, images: Tensor) -> Tensor:
        """Logits without a label: log sum_y p(y) exp D(x, y), over all classes or over quantiles of the numbers."""
        network, logits = self.discriminator, []
        labels, weights = self._labels_and_weights()
        features = None if network.concat_dim else network.features(images)
        for label in labels:
            condition = self.condition(label.expand(images.shape[0]))
            of_label = network.features(images, condition) if features is None else features
            logits.append(network.logits_from(of_label, condition))
        return torch.logsumexp(torch.stack(logits, 1) + weights.log(), 1)

    def _labels_and_weights(self) -> tuple[Tensor, Tensor]:
        """Labels (k,), and the probability p(y) of each."""
        if self.config.condition == "labels":
            weights = self.condition.marginal.clamp_min(1e-6)
            return torch.arange(len(weights), device=self.device), weights / weights.sum()
        labels = self.example_labels(EXAMPLE_NUMBERS).to(self.device)
        return labels, torch.full((EXAMPLE_NUMBERS,), 1 / EXAMPLE_NUMBERS, device=self.device)

    def sample(self, network: nn.Module, count: int, context: StepContext, labels: Tensor | None = None) -> Tensor:
        draws = context.generator
        latents = self.to_latents(self.noise(count, draws))
        if labels is None:
            labels = self.condition.from_uniform(torch.rand(count, generator=draws, device=draws.device))
        return self.to_unit_range(network(latents, self.condition(labels)))

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        labels = self.example_labels(SNAPSHOT_IMAGES).to(self.device)
        return self.sample(self.serving_generator(context), SNAPSHOT_IMAGES, context, labels)

    def after_training(self, train: Columns, context: StepContext) -> None:
        self.condition.fit(train)
        super().after_training(train, context)

    def condition_agreement(
        self, fidelity: Fidelity, train: Columns, validation: Columns, context: StepContext
    ) -> dict[str, float]:
        labels = self.example_labels(fidelity.count).to(self.device)
        chunks = [self.sample(self.ema.module, len(part), context, part).cpu() for part in labels.split(CHUNK)]
        samples, labels = torch.cat(chunks), labels.cpu()
        if self.config.condition == "targets":
            return number_agreement(fidelity, train, validation, samples, labels)
        return class_agreement(fidelity, validation, samples, labels) if fidelity.labelled else {}

    def label(self, given: str | int) -> int | float:
        if self.config.condition == "labels":
            return super().label(given)
        try:
            value = float(given)
        except ValueError:
            value = float("nan")
        if abs(value) < 1e30:  # false for nan
            return value
        raise InputError(
            f"label must be a number in (-1e30, 1e30), because this model was trained on targets; you sent {given!r}",
            field="label",
        )

    def example_labels(self, count: int) -> Tensor:
        if self.config.condition == "labels":
            return super().example_labels(count)
        quantiles = (torch.arange(count) % EXAMPLE_NUMBERS + 0.5) / EXAMPLE_NUMBERS
        return self.condition.from_uniform(quantiles.to(self.device)).cpu()

    def describe_labels(self, labels: Tensor) -> list[dict]:
        if self.config.condition == "labels":
            return super().describe_labels(labels)
        return [{"label": value} for value in labels.tolist()]
