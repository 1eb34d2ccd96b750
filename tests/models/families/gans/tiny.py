"""Small GANs for tests: 8x8 images, few channels, seeded."""

import numpy as np
import torch

from models.data import Columns
from models.family import Family
from models.training.loop import Training
from models.types import DataSpec


def spec(height: int = 8, width: int | None = None, channels: int = 1, classes: int | None = None, count: int = 16):
    """Facts of a dataset, with labels if `classes` is given."""
    rows = {"images": count, **({"labels": count} if classes else {})}
    names = tuple(f"class {index}" for index in range(classes)) if classes else None
    return DataSpec("labelled" if classes else "plain", height, width or height, channels, names, {"train": rows})


def columns(data: DataSpec, seed: int = 0) -> Columns:
    """Random images, and labels in turn."""
    draws, count = np.random.default_rng(seed), data.count
    arrays = {"images": draws.integers(0, 256, (count, *data.shape), dtype=np.uint8)}
    if data.classes:
        arrays["labels"] = np.arange(count) % len(data.classes)
    return Columns(arrays)


def build(family: type[Family], data: DataSpec | None = None, seed: int = 0, **config) -> Family:
    """A new model whose weights follow from `seed`."""
    torch.manual_seed(seed)
    return family.create({"width": 4, "batch_size": 4, "images": 32, **config}, data or spec())


def train(model: Family, steps: int | None = None, training: Training | None = None) -> Training:
    """A training after `steps` updates, or at its end."""
    training = training or Training(model, columns(model.data), columns(model.data, 1), seed=3)
    model.train()
    while training.images < training.total and steps != 0:
        training.advance()
        steps = None if steps is None else steps - 1
    return training
