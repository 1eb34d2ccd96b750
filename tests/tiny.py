"""Smallest families with every capability the operations ask for: real networks, untrained, built in microseconds."""

import torch
from torch import Tensor, nn

from models.capabilities import Classifies, Conditional, Decodes, Denoises, Encodes, HasPrior
from models.context import StepContext
from models.family import Family, OneLoss
from models.types import Batch, DataSpec, Metrics


def facts(size: int = 8, channels: int = 1, classes: int | None = 3, count: int = 24) -> dict:
    """Facts of a dataset of square images."""
    rows = {"images": count, **({"labels": count} if classes else {})}
    names = [f"class {index}" for index in range(classes)] if classes else None
    split = {"train": rows, "validation": rows}
    layout = "labelled" if classes else "plain"
    return {
        "layout": layout, "height": size, "width": size, "channels": channels, "classes": names, "columns": split,
    }  # fmt: skip


class TinyAutoencoder(Encodes, Decodes, HasPrior, Denoises, OneLoss):
    """A convolution with batch norm in, two linear layers out."""

    name = "tiny_autoencoder"
    summary = "for tests"
    latent_dim = 3

    def __init__(self, config, data: DataSpec):
        super().__init__(config, data)
        self.inward = nn.Sequential(
            nn.Conv2d(data.channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.1), nn.LazyLinear(self.latent_dim),
        )  # fmt: skip
        self.outward = nn.Sequential(nn.Linear(self.latent_dim, 32), nn.ReLU(), nn.Linear(32, data.pixels))
        self.inward.eval()(torch.zeros(1, *data.shape))
        self.train()

    def encode(self, images: Tensor) -> Tensor:
        return self.inward(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.outward(latents).sigmoid().view(-1, *self.data.shape)

    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        return noise + uniform[:, None].round()

    def denoise(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        images = batch["images"]
        noise = torch.randn(images.shape, generator=context.generator)
        loss = (self.decode(self.encode(images + 0.1 * noise)) - images).square().sum((1, 2, 3)).mean()
        return loss, {"mse": loss.detach() / self.data.pixels}

    def snapshot(self, probe: Batch, context: StepContext) -> Tensor:
        return self.denoise(probe["images"][:4])

    def evaluate(self, train, validation, context) -> dict[str, float]:
        images = validation.head(64)["images"]
        return {"mse": float((self.denoise(images) - images).square().mean())}


class TinyGenerator(Decodes, HasPrior, Conditional, Family):
    """Decodes for a class; there is no encoder."""

    name = "tiny_generator"
    summary = "for tests"
    latent_dim = 4

    def __init__(self, config, data: DataSpec):
        super().__init__(config, data)
        self.embedding = nn.Embedding(len(data.classes), self.latent_dim)
        self.network = nn.Linear(self.latent_dim, data.pixels)

    def draw(self, noise: Tensor, uniform: Tensor, labels: Tensor) -> Tensor:
        return noise

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        return self.network(latents + self.embedding(labels)).sigmoid().view(-1, *self.data.shape)

    def optimisers(self):
        return {}

    def step(self, batch, optimisers, context):
        return {}


class TinyClassifier(Classifies, OneLoss):
    """A convolution and a linear layer."""

    name = "tiny_classifier"
    summary = "for tests"
    needs = ("images", "labels")

    def __init__(self, config, data: DataSpec):
        super().__init__(config, data)
        self.body = nn.Sequential(
            nn.Conv2d(data.channels, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(8 * 16, len(data.classes))

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        return nn.functional.cross_entropy(self.logits(batch["images"]), batch["labels"]), {}


class TinyExploding(TinyClassifier):
    """Its loss leaves the numbers."""

    name = "tiny_exploding"

    def loss(self, batch: Batch, context: StepContext) -> tuple[Tensor, Metrics]:
        return self.logits(batch["images"]).sum() * 10.0 ** (context.step * 10), {}


FAMILIES = {kind.name: kind for kind in (TinyAutoencoder, TinyGenerator, TinyClassifier)}
TRAINABLE = FAMILIES | {TinyExploding.name: TinyExploding}


def build(kind: type[Family], seed: int = 0, **shape) -> Family:
    """A frozen model with random weights."""
    torch.manual_seed(seed)
    return kind.create({}, DataSpec.from_facts(facts(**shape))).eval().requires_grad_(False)
