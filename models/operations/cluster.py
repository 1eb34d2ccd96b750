"""The group that an image belongs to, among those a report found."""

from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.evaluation.clustering import Clustering
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.latents import fitting_latents


class ClusterParams(ImageParams):
    """Whose groups."""

    report: str = Field(max_length=400, description="The id of a finished job: a cluster report on this model.")


class Cluster(Operation):
    """`inside` is false for an image farther from the middle than 99 % of the group's own images."""

    name = "cluster"
    summary = "Puts images into the groups that a cluster report has found."
    needs = (Encodes,)
    takes = "either"
    gives = "facts"
    report = "cluster"
    Params = ClusterParams

    def rows(self, model: Family, inputs: Tensor, params: ClusterParams) -> Rows:
        return {"inputs": inputs if inputs.ndim == 4 else fitting_latents(model, inputs)}

    def batch_key(self, params: ClusterParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: ClusterParams) -> Rows:
        return {"codes": model.encode(rows["inputs"]) if rows["inputs"].ndim == 4 else rows["inputs"]}

    def result(self, model: Family, rows: Rows, found: Rows, params: ClusterParams) -> Result:
        clustering, about = Clustering.unpack(self.fitted), self.fitted.facts["clusters"]
        groups, distances, belong = clustering.assign(found["codes"])
        items = []
        for group, distance, shares in zip(groups.tolist(), distances.tolist(), belong, strict=True):
            item = about[group] | {"distance": distance, "inside": distance <= float(clustering.reach[group])}
            if clustering.method == "gmm":
                item["probability"] = float(shares[group])
            items.append(item)
        return Result(facts={"method": clustering.method, "clusters": len(clustering), "items": items})
