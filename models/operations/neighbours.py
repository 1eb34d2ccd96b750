"""Samples beside the training images nearest to them: does the model invent, or does it remember?"""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, HasPrior
from models.evaluation.dataset_view import DatasetView
from models.family import Family
from models.operations.core.base import DatasetParams, Result, Rows
from models.operations.core.nearest import nearest
from models.operations.samples import Samples, SamplesParams

UNSEEN = 200
USUAL = 0.05


class NeighboursParams(SamplesParams, DatasetParams):
    """The samples are those of `samples` with the same parameters."""

    n: int = Field(16, ge=2, le=128, description="How many samples; each is answered with its neighbour.")


class Neighbours(Samples):
    """Pairs of a sample and the training image whose pixels are nearest.

    A sample is called copied when it is nearer than 95 % of unseen (validation) images are; a fair sampler has .05.
    """

    name = "neighbours"
    summary = "Draws samples and shows the nearest training image beside each."
    needs = (HasPrior, Decodes)
    dataset = True
    Params = NeighboursParams

    def result(self, model: Family, rows: Rows, found: Rows, params: NeighboursParams) -> Result:
        drawn = super().result(model, rows, found, params)
        selection = self.view.select("train")
        distances, positions = nearest(self.view, selection, drawn.images, "pixels", 1)
        usual = usual_distance(self.view)
        items = drawn.facts.get("items") or [{}] * len(drawn.images)
        places = self.view.describe(positions[:, 0])
        items = [
            item | {"nearest": place | {"distance": distance}} | ({} if usual is None else {"copied": distance < usual})
            for item, place, distance in zip(items, places, distances[:, 0].tolist(), strict=True)
        ]
        facts = drawn.facts | {"dataset": self.view.name, "items": items}
        if usual is not None:
            facts |= {"threshold": usual, "copied": sum(item["copied"] for item in items) / len(items)}
            facts |= {"copied_by_chance": USUAL}
        pairs = torch.stack([drawn.images, self.view.images(positions[:, 0])], 1).flatten(0, 1)
        return Result(images=pairs, latents=drawn.latents, facts=facts, columns=2 * min(8, len(items)))


def usual_distance(view: DatasetView) -> float | None:
    """What 5 % of unseen images fall below in their distance to the nearest training image; None without any."""
    if "validation" not in view.sides:
        return None

    def compute() -> Tensor:
        unseen = view.images(view.select("validation", UNSEEN).positions)
        return nearest(view, view.select("train"), unseen, "pixels", 1)[0][:, 0]

    return float(view.cache("usual-distances", 0, compute).quantile(USUAL))
