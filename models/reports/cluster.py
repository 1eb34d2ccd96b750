"""Do the codes fall into groups, and are they the classes? k-means or a Gaussian mixture over codes."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.evaluation.clustering import Clustering, Method
from models.evaluation.dataset_view import DatasetView, Selection
from models.reports.core.base import Findings, Report, Run, Subject
from models.reports.core.codes import CodesParams, encode_all, view_of
from models.types import DataError

SHOWN = 16


class ClusterParams(CodesParams):
    """How to group."""

    clusters: int | None = Field(None, ge=2, le=1000, description="Groups; empty: the number of classes, else 10.")
    method: Method = Field("kmeans", description="k-means, or a Gaussian mixture (diagonal).")


class ClusterReport(Report):
    """With labels: accuracy under the best matching of groups to classes (Hungarian), NMI and ARI. Without: silhouette.

    Codes are standardised per dimension. The same seed gives the same groups. The operation `cluster` puts other images
    into the groups of a finished report.
    """

    name = "cluster"
    summary = "Groups the codes of a dataset and compares the groups with its classes."
    needs = (Encodes,)
    Params = ClusterParams

    def run(self, subject: Subject, params: ClusterParams, kept: Any = None) -> Run:
        view = view_of(subject)
        selection = view.select(params.split, params.images)
        count = params.clusters or len(subject.data.classes or ()) or 10
        if count >= len(selection):
            raise DataError(
                f"{count} clusters need more than {count} images; there are {len(selection)} to look at",
                "params/clusters",
                "ask for fewer clusters" + ("" if params.split == "all" else ", or for split: all"),
            )
        codes = yield from encode_all(subject.model, view, selection)
        found = Clustering.fit(codes, count, params.method, subject.seed)
        groups = found.assign(codes)[0].numpy()
        facts = {"clusters": count, "images": len(codes), "method": params.method}
        facts |= shape_facts(found.standardised(codes).numpy().astype(np.float64), groups)
        table = [{"cluster": k, "images": int((groups == k).sum())} for k in range(len(found))]
        labels = view.labels(selection.positions)
        if labels is not None:
            facts |= label_facts(labels.numpy(), groups)
            name_majority(table, labels.numpy(), groups, subject.data.classes)
        pictures = {"clusters": sheet(view, selection, found, codes)}
        notes = []
        if len(found) < count:
            notes = [
                f"Only {len(found)} of the codes differ, so there are no more groups: the model may have collapsed."
            ]
        return Findings(facts, {"clusters": table}, [], pictures, notes, found.pack({"clusters": table}))


def shape_facts(points: np.ndarray, groups: np.ndarray) -> dict[str, float | None]:
    """How well separated the groups are: the mean silhouette in [-1, 1] over at most 5 000 points."""
    from sklearn.metrics import silhouette_score

    part = slice(0, 5000)
    distinct = len(np.unique(groups[part]))
    if not 2 <= distinct < len(points[part]):
        return {"silhouette": None}
    return {"silhouette": float(silhouette_score(points[part], groups[part]))}


def label_facts(labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Accuracy of the best one-to-one matching, NMI and ARI, with the accuracy of one single group beside them."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    table = np.zeros((groups.max() + 1, labels.max() + 1), dtype=np.int64)
    np.add.at(table, (groups, labels), 1)
    rows, columns = linear_sum_assignment(-table)
    return {
        "accuracy": float(table[rows, columns].sum() / len(labels)),
        "accuracy_one_cluster": float(table.sum(0).max() / len(labels)),
        "nmi": float(normalized_mutual_info_score(labels, groups)),
        "ari": float(adjusted_rand_score(labels, groups)),
    }


def name_majority(rows: list[dict[str, Any]], labels: np.ndarray, groups: np.ndarray, classes: tuple | None) -> None:
    """Adds to each group the class most of its members have, and their share."""
    for row in rows:
        members = labels[groups == row["cluster"]]
        if len(members):
            best = int(np.bincount(members).argmax())
            row |= {"label": classes[best] if classes else str(best), "share": float((members == best).mean())}


def sheet(view: DatasetView, selection: Selection, found: Clustering, codes: Tensor) -> Tensor:
    """A row of images per group, those nearest its middle first; short groups are filled up with white."""
    groups, distances, _ = found.assign(codes)
    rows = []
    for group in range(min(len(found), 64)):
        members = (groups == group).nonzero()[:, 0]
        if not len(members):
            continue
        near = members[distances[members].argsort(stable=True)[:SHOWN]]
        images = view.images(selection.positions[near])
        rows.append(torch.cat([images, images.new_ones(SHOWN - len(images), *images.shape[1:])]))
    return torch.cat(rows)
