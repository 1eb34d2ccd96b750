"""Search: the images of a dataset that are nearest to given ones."""

from models.capabilities import Encodes
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.latents import fitting_latents
from models.operations.core.nearest import NearestParams, check_metric, matches, nearest_images


class SearchParams(NearestParams, ImageParams):
    """Which images to search, and how to compare them."""


class Search(Operation):
    """The codes of a dataset are computed once per model and cached."""

    name = "search"
    summary = "Finds the images of a dataset that are most similar to the given ones."
    needs = (Encodes,)
    takes = "either"
    gives = "pictured"
    dataset = True
    price = {"forwards": "inputs + dataset * (1 - metric_pixels)", "backwards": "0"}
    Params = SearchParams

    def rows(self, model: Family, inputs, params: SearchParams) -> Rows:
        check_metric(params.metric, inputs)
        self.view.select(params.split, params.images)
        return {"inputs": inputs if inputs.ndim == 4 else fitting_latents(model, inputs)}

    def batch_key(self, params: SearchParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: SearchParams) -> Rows:
        return {"codes": model.encode(rows["inputs"]) if rows["inputs"].ndim == 4 else rows["inputs"]}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: SearchParams) -> Result:
        selection = self.view.select(params.split, params.images)
        queries = rows["inputs"] if params.metric == "pixels" else outputs["codes"]
        return matches(self.view, *nearest_images(self.view, selection, queries, params.metric, params.neighbours))
