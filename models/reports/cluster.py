"""Clusters the codes of a dataset, and compares clusters with classes."""

from collections.abc import Generator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Encodes
from models.evaluation.clustering import MAX_GRAPH, Clustering, Method
from models.evaluation.dataset_view import DatasetView, Selection
from models.evaluation.deep_clustering import DeepClusters, shown_images
from models.reports.core.base import Progress, Report, ReportResult, Run, Subject
from models.reports.core.codes import CodesParams, encode_all, view_of
from models.types import DataError

PER_CLUSTER = 16


class ClusterParams(CodesParams):
    """The clustering, and the images."""

    clusters: int | None = Field(
        None, ge=2, le=1000, description="Number of clusters. Default: the number of classes, else 10."
    )
    method: Method | Literal["deep"] = Field(
        "spectral",
        description="spectral: the graph of 10 nearest codes, of at most 5 000 codes; others take the vote of their "
        "neighbours. kmeans. gmm: a Gaussian mixture with full covariances. deep: a copy of the encoder is trained to "
        "name the spectral clusters of augmented training images, then its own (about 20 s).",
    )


class ClusterReport(Report):
    """The silhouette; with labels also the accuracy of the best one-to-one matching (Hungarian), NMI and ARI.

    Codes are not scaled; axes of almost no variance are dropped. The same seed gives the same clusters. The operation
    `cluster` assigns other images to the clusters of a finished report.
    """

    name = "cluster"
    summary = "Clusters the codes of a dataset and compares the clusters with its classes."
    needs = (Encodes,)
    Params = ClusterParams
    # deep trains for as many images as `shown_images` says, and looks at the training images after each epoch
    price = {
        "forwards": "images + train_images * (1 - split_validation)"
        " + method_deep * (images + train_images + 2 * max(24000, 120000 * min(1, 784 / pixels)) + 2 * 5000)",
        "backwards": "method_deep * (max(24000, 120000 * min(1, 784 / pixels)) + 5000)",
    }

    def run(self, subject: Subject, params: ClusterParams, progress_state: Any = None) -> Run:
        view = view_of(subject)
        selection = view.select(params.split, params.images)
        count = params.clusters or len(subject.data.classes or ()) or 10
        if count >= len(selection):
            raise DataError(
                f"{count} clusters need more than {count} images; there are {len(selection)}",
                "params/clusters",
                "use fewer clusters" + ("" if params.split == "all" else ", or split: all"),
            )
        codes = yield from encode_all(subject.model, view, selection)
        if params.method == "deep":
            clustering = yield from deep(subject, view, selection, codes, count)
        else:
            clustering = Clustering.fit(codes, count, params.method, subject.seed)
        groups = clustering.assign(codes)[0].numpy()
        facts = {"clusters": count, "images": len(codes), "method": params.method}
        facts |= shape_facts(clustering.points(codes).numpy().astype(np.float64), groups)
        table = [{"cluster": k, "images": int((groups == k).sum())} for k in range(len(clustering))]
        labels = view.labels(selection.positions)
        if labels is not None:
            facts |= label_facts(labels.numpy(), groups)
            name_majority(table, labels.numpy(), groups, subject.data.classes)
        pictures = {"clusters": sheet(view, selection, clustering, codes)}
        notes = []
        if len(clustering) < count:
            notes = [
                f"Only {len(clustering)} codes are distinct, so there are no more clusters: the model may have "
                "collapsed."
            ]
        return ReportResult(facts, {"clusters": table}, [], pictures, notes, clustering.pack({"clusters": table}))


def deep(
    subject: Subject, view: DatasetView, selection: Selection, codes: Tensor, count: int
) -> Generator[Progress, None, Clustering]:
    """Clusters of the selected images by a network trained on images of the training split, started from spectral ones.

    New codes take the vote of the nearest codes (n, D) of the selection.
    """
    training = view.select("train" if "train" in view.sides else "all", MAX_GRAPH)
    known = view.codes(training)
    groups = Clustering.fit(known, count, "spectral", subject.seed).assign(known)[0]
    network = DeepClusters(subject.model, known, groups)
    total = len(selection) + shown_images(subject.data.pixels)
    for shown in network.learn(view.images, training.positions, groups, subject.seed):
        yield Progress(len(selection) + shown, total)
    groups = network.predict(view.images, selection.positions).argmax(1)
    return Clustering.from_groups(codes, groups, "deep")


def shape_facts(points: np.ndarray, groups: np.ndarray) -> dict[str, float | None]:
    """The mean silhouette, in [-1, 1], of at most 5 000 points; None for a single cluster."""
    from sklearn.metrics import silhouette_score

    part = slice(0, 5000)
    distinct = len(np.unique(groups[part]))
    if not 2 <= distinct < len(points[part]):
        return {"silhouette": None}
    return {"silhouette": float(silhouette_score(points[part], groups[part]))}


def label_facts(labels: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Accuracy of the best one-to-one matching, NMI, ARI; the accuracy of a single cluster is the baseline."""
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
    """Adds to the row of each cluster its most frequent class as `label`, and that class's fraction as `share`."""
    for row in rows:
        members = labels[groups == row["cluster"]]
        if len(members):
            best = int(np.bincount(members).argmax())
            row |= {"label": classes[best] if classes else str(best), "share": float((members == best).mean())}


def sheet(view: DatasetView, selection: Selection, clustering: Clustering, codes: Tensor) -> Tensor:
    """A row of PER_CLUSTER images per cluster, nearest to its centre first; short rows are filled with white."""
    groups, distances, _ = clustering.assign(codes)
    rows = []
    for group in range(min(len(clustering), 64)):
        members = (groups == group).nonzero()[:, 0]
        if not len(members):
            continue
        near = members[distances[members].argsort(stable=True)[:PER_CLUSTER]]
        images = view.images(selection.positions[near])
        rows.append(torch.cat([images, images.new_ones(PER_CLUSTER - len(images), *images.shape[1:])]))
    return torch.cat(rows)
