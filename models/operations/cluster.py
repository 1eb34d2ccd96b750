"""Assigns images to the clusters that a cluster report found."""

from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.evaluation.clustering import Clustering
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.operations.core.latents import fitting_latents


class ClusterParams(ImageParams):
    """Which cluster report to use."""

    report: str = Field(max_length=400, description="Id of a finished cluster report on this model.")


class Cluster(Operation):
    """`inside` is false for images farther from the centre than 99 % of the cluster's own images."""

    name = "cluster"
    summary = "Assigns images to the clusters that a cluster report found."
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

    def result(self, model: Family, rows: Rows, outputs: Rows, params: ClusterParams) -> Result:
        clustering, about = Clustering.unpack(self.fitted), self.fitted.facts["clusters"]
        clusters, distances, probabilities = clustering.assign(outputs["codes"])
        items = []
        for index, distance, row in zip(clusters.tolist(), distances.tolist(), probabilities, strict=True):
            item = about[index] | {"distance": distance, "inside": distance <= float(clustering.reach[index])}
            if clustering.method == "gmm":
                item["probability"] = float(row[index])
            items.append(item)
        return Result(facts={"method": clustering.method, "clusters": len(clustering), "items": items})
