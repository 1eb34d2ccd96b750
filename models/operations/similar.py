"""Search within a dataset: the images that are nearest to one of its own."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.family import Family
from models.operations.core.base import Operation, Result, Rows
from models.operations.core.nearest import NearestParams, matches, nearest_images


class SimilarParams(NearestParams):
    """Which image of the dataset, which images to search, and how to compare them."""

    index: int = Field(
        ge=0, lt=2**31, description="Index of the image in its split, as in the dataset's list of images."
    )
    of: Literal["train", "validation"] = Field("train", description="Split of the image.")


class Similar(Operation):
    """The image itself is left out; a distance near 0 means a duplicate."""

    name = "similar"
    summary = "Finds the images of a dataset that are most similar to one of its own."
    needs = (Encodes,)
    takes = "nothing"
    gives = "pictured"
    method = "GET"
    dataset = True
    price = {"forwards": "1 + dataset * (1 - metric_pixels)", "backwards": "0"}
    Params = SimilarParams

    def rows(self, model: Family, inputs: Tensor | None, params: SimilarParams) -> Rows:
        return {"inputs": self.view.images(torch.tensor([self.view.position(params.of, params.index)]))}

    def batch_key(self, params: SimilarParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: SimilarParams) -> Rows:
        return {"codes": model.encode(rows["inputs"])}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: SimilarParams) -> Result:
        own, selection = self.view.position(params.of, params.index), self.view.select(params.split, params.images)
        queries = rows["inputs"] if params.metric == "pixels" else outputs["codes"]
        distances, positions = nearest_images(self.view, selection, queries, params.metric, params.neighbours + 1)
        others = (positions[0] != own).nonzero()[: params.neighbours, 0]
        return matches(self.view, distances[:, others], positions[:, others])
