"""Do the codes fall into groups, and are they the classes? k-means or a Gaussian mixture over codes."""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from models.family import Encodes
from models.reports.codes import column, encode_all, standardised
from models.reports.core import Findings, Params, Report, Run, Subject
from models.types import DataError

SHOWN = 16


class ClusterParams(Params):
    """How to group."""

    clusters: int | None = Field(None, ge=2, le=1000, description="Groups; empty: the number of classes, else 10.")
    method: Literal["kmeans", "gmm"] = Field("kmeans", description="k-means, or a Gaussian mixture (diagonal).")
    images: int = Field(10_000, ge=2, le=100_000, description="At most so many images, from the validation split.")


class ClusterReport(Report):
    """With labels: accuracy under the best matching of groups to classes (Hungarian), NMI and ARI. Without: silhouette.

    Codes are standardised per dimension. The same seed gives the same groups.
    """

    name = "cluster"
    summary = "Groups the codes of a dataset and compares the groups with its classes."
    needs = (Encodes,)
    Params = ClusterParams

    def run(self, subject: Subject, params: ClusterParams, kept: Any = None) -> Run:
        codes = yield from encode_all(subject.model, subject.validation, params.images)
        count = params.clusters or len(subject.data.classes or ()) or 10
        if count >= len(codes):
            raise DataError(
                f"{count} clusters need more than {count} images; this dataset has {len(codes)} to validate on",
                "params/clusters",
                "ask for fewer clusters",
            )
        points = standardised(codes).numpy().astype(np.float64)
        groups = assign(points, count, params.method, subject.seed)
        facts = {"clusters": count, "images": len(codes), "method": params.method, **shape_facts(points, groups)}
        tables = {"clusters": [{"cluster": k, "images": int((groups == k).sum())} for k in range(count)]}
        if "labels" in subject.validation:
            labels = column(subject.validation, "labels", len(codes)).numpy()
            facts |= label_facts(labels, groups)
            name_majority(tables["clusters"], labels, groups, subject.data.classes)
        return Findings(facts, tables, pictures={"clusters": sheet(subject, points, groups, count)})


def assign(points: np.ndarray, count: int, method: str, seed: int) -> np.ndarray:
    """The group of each point."""
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    state = seed % 2**32
    if method == "kmeans":
        return KMeans(count, n_init=10, random_state=state).fit_predict(points)
    return GaussianMixture(count, covariance_type="diag", reg_covar=1e-4, random_state=state).fit_predict(points)


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


def sheet(subject: Subject, points: np.ndarray, groups: np.ndarray, count: int) -> torch.Tensor:
    """A row of images per group, those nearest its middle first; short groups are filled up with white."""
    rows = []
    for group in range(min(count, 64)):
        members = np.flatnonzero(groups == group)
        if not len(members):
            continue
        near = members[np.argsort(((points[members] - points[members].mean(0)) ** 2).sum(1))[:SHOWN]]
        images = subject.validation.rows(torch.from_numpy(near), ["images"])["images"]
        rows.append(torch.cat([images, images.new_ones(SHOWN - len(images), *images.shape[1:])]))
    return torch.cat(rows)
