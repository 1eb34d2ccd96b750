"""Samples beside the training images nearest to them: does the model invent, or does it remember?"""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, HasPrior
from models.evaluation.dataset_view import DatasetView
from models.family import Family
from models.operations.core.base import DatasetParams, Result, Rows
from models.operations.core.nearest import nearest_images
from models.operations.samples import Samples, SamplesParams

UNSEEN = 200
COPY_QUANTILE = 0.05


class NeighboursParams(SamplesParams, DatasetParams):
    """The samples are those of `samples` with the same parameters."""

    n: int = Field(16, ge=2, le=128, description="Number of samples; each is shown beside its nearest training image.")


class Neighbours(Samples):
    """Pairs of a sample and the nearest training image by pixels.

    `copied`: nearer than 95 % of the validation images are to theirs; 5 % of the samples are expected by chance.
    """

    name = "neighbours"
    summary = "Draws samples and shows the nearest training image beside each."
    needs = (HasPrior, Decodes)
    dataset = True
    Params = NeighboursParams

    def result(self, model: Family, rows: Rows, outputs: Rows, params: NeighboursParams) -> Result:
        samples = super().result(model, rows, outputs, params)
        selection = self.view.select("train")
        distances, positions = nearest_images(self.view, selection, samples.images, "pixels", 1)
        threshold = copy_threshold(self.view)
        items = samples.facts.get("items") or [{}] * len(samples.images)
        places = self.view.describe(positions[:, 0])
        items = [
            item
            | {"nearest": place | {"distance": distance}}
            | ({} if threshold is None else {"copied": distance < threshold})
            for item, place, distance in zip(items, places, distances[:, 0].tolist(), strict=True)
        ]
        facts = samples.facts | {"dataset": self.view.name, "items": items}
        if threshold is not None:
            facts |= {"threshold": threshold, "copied": sum(item["copied"] for item in items) / len(items)}
            facts |= {"copied_by_chance": COPY_QUANTILE}
        pairs = torch.stack([samples.images, self.view.images(positions[:, 0])], 1).flatten(0, 1)
        return Result(images=pairs, latents=samples.latents, facts=facts, columns=2 * min(8, len(items)))


def copy_threshold(view: DatasetView) -> float | None:
    """The 5 % quantile of the distance from validation images to the nearest training image; None without any."""
    if "validation" not in view.sides:
        return None

    def compute() -> Tensor:
        unseen = view.images(view.select("validation", UNSEEN).positions)
        return nearest_images(view, view.select("train"), unseen, "pixels", 1)[0][:, 0]

    return float(view.cache("usual-distances", 0, compute).quantile(COPY_QUANTILE))
