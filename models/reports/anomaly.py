"""A whole dataset ranked: which images does the model not know, which stand alone, which are nearly the same?"""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes
from models.data import Columns
from models.evaluation.anomaly import Familiar, Measured, bound, enough_for_pca, heat, measure, pca_basis
from models.evaluation.dataset_view import DatasetView, Selection
from models.evaluation.metrics import spaced_rows
from models.evaluation.reconstruct import reconstruct
from models.reports.core.base import Curve, Findings, Progress, Report, Run, Subject
from models.reports.core.codes import BATCH, CodesParams, standardised, view_of
from models.types import DataError

RANKED = 100
SHOWN = 16
TWIN = 0.2
"""Codes nearer than this share of the usual distance to the nearest other are called nearly the same."""


class AnomalyParams(CodesParams):
    """What counts as normal, and how much to look at."""

    normal: list[str | int] | None = Field(
        None, description="Classes that are normal, by name or index; the others are anomalies and scores are judged."
    )


class AnomalyReport(Report):
    """Scores count standard deviations from the usual reconstruction error on the model's own validation data.

    Thresholds are the 95 % and 99 % quantiles there. PCA with as many numbers and the distance to the nearest codes are
    scored likewise, and the -ELBO of a vae. With `normal`, AUROC and average precision of them all. Outliers are far
    from every other code of the dataset, near duplicates are pairs much closer than usual. `split: all` ranks the whole
    dataset.
    """

    name = "anomaly"
    summary = "Ranks a dataset by how unfamiliar its images are; finds outliers and near duplicates."
    needs = (Encodes, Decodes)
    Params = AnomalyParams

    def run(self, subject: Subject, params: AnomalyParams, kept: Any = None) -> Run:
        view = view_of(subject)
        selection = view.select(params.split, params.images)
        if len(selection) < 2:
            raise DataError("one image cannot be ranked", "dataset", "look at split: all, or at a larger dataset")
        home = subject.home or subject.validation or subject.train
        strange = anomalies(view, selection, subject, params)
        if strange is not None and subject.home is None:
            raise DataError("the model's own dataset is gone, so nothing says what is normal", "model")
        rows = home_rows(subject, home, params)
        total = len(rows) + 2 * len(selection)
        basis = fitted_basis(subject, home, rows)
        known = yield from measured(subject, basis, home, rows, 0, total)
        found = yield from measured(subject, basis, view, selection.positions, len(rows), total)
        familiar = Familiar(known)
        scores = familiar.scores(found)
        twins, alone = yield from neighbours(found.codes, len(rows) + len(selection), total)
        facts: dict[str, Any] = {"images": len(selection), "home_images": len(rows)}
        for share, threshold in familiar.thresholds("model").items():
            above = float((scores["model"] > threshold).double().mean())
            facts |= {f"threshold_{share}": threshold, f"above_{share}": above}
        if strange is not None:
            facts |= {f"{k}_{name}": v for k, rival in scores.items() for name, v in judge(rival, strange).items()}
        places = view.describe(selection.positions)
        order = scores["model"].argsort(descending=True, stable=True)[:RANKED].tolist()
        lonely = alone.argsort(descending=True, stable=True)[:RANKED].tolist()
        pairs = near_duplicates(view, selection, places, *twins)
        facts |= {"near_duplicates": len(pairs)}
        facts |= {"near_duplicates_across_splits": sum(row["split"] != row["other_split"] for row in pairs)}
        tables = {
            "most_unusual": [
                places[i]
                | {"score": float(scores["model"][i]), "mse": float(found.errors[i])}
                | {name: float(rival[i]) for name, rival in scores.items() if name != "model"}
                for i in order
            ],
            "outliers": [places[i] | {"distance": float(alone[i])} for i in lonely],
            "near_duplicates": pairs[:RANKED],
        }
        pictures = {
            "most_unusual": view.images(selection.positions[order[:64]]),
            "outliers": view.images(selection.positions[lonely[:64]]),
            "heat_maps": explained(subject, view.images(selection.positions[order[:SHOWN]])),
        }
        if pairs:
            pictures["near_duplicates"] = view.images(
                torch.tensor([p for row in pairs[:32] for p in _positions(view, row)])
            )
        return Findings(facts, tables, [histogram(familiar.sorted_scores["model"], scores["model"])], pictures)


def anomalies(view: DatasetView, selection: Selection, subject: Subject, params: AnomalyParams) -> np.ndarray | None:
    """Which of the images are anomalies, when `normal` says so."""
    if params.normal is None:
        return None
    labels = view.labels(selection.positions)
    if labels is None:
        raise DataError("`normal` names classes, and this dataset has no labels", "params/normal")
    wanted = {subject.data.class_index(label) for label in params.normal}
    strange = ~np.isin(labels.numpy(), list(wanted))
    if strange.all() or not strange.any():
        raise DataError("`normal` must leave both normal images and anomalies", "params/normal")
    return strange


def home_rows(subject: Subject, home: Columns, params: AnomalyParams) -> Tensor:
    """Rows of the model's own data that count as normal."""
    count = len(home)
    rows = torch.linspace(0, count - 1, min(count, params.images), dtype=torch.float64).long()
    if params.normal is None or "labels" not in home:
        return rows
    classes = torch.tensor([subject.model.data.class_index(label) for label in params.normal])
    kept = rows[torch.isin(home.rows(rows, ["labels"])["labels"].cpu(), classes)]
    return kept if len(kept) > 1 else rows


def fitted_basis(subject: Subject, home: Columns, rows: Tensor) -> Tensor:
    """PCA of what the model learned from, else of its validation data that count as normal."""
    limit = enough_for_pca(subject.model.data.pixels)
    if subject.learned is not None and len(rows) == len(home):  # not only some of its classes
        images = torch.cat(list(spaced_rows(subject.learned, limit=limit)))
    else:
        images = home.rows(rows[:limit], ["images"])["images"]
    return pca_basis(images.cpu(), subject.model.latent_dim)


def measured(
    subject: Subject, basis: Tensor, source: Columns | DatasetView, rows: Tensor, done: int, total: int
) -> Generator[Progress, None, Measured]:
    """Codes and errors of the images at `rows`, and their -ELBO where the model has one."""
    function, found = measure(subject.model, basis), []
    bounded, bounds = bound(subject.model), []
    for part in rows.split(BATCH):
        images = source.images(part) if isinstance(source, DatasetView) else source.rows(part, ["images"])["images"]
        images = images.to(subject.model.device)
        found.append(function(images).cpu())
        bounds += [bounded(images).cpu()] if bounded else []
        done += len(part)
        yield Progress(done, total)
    return Measured.from_rows(torch.cat(found), torch.cat(bounds) if bounds else None)


def neighbours(
    codes: Tensor, done: int, total: int
) -> Generator[Progress, None, tuple[tuple[Tensor, Tensor, float], Tensor]]:
    """((the distance to the nearest other code (n,), which that is (n,), the usual distance), the mean to a few)."""
    points = standardised(codes)
    count = min(6, len(points))
    distances, indices = [], []
    for start in range(0, len(points), BATCH):
        gaps = torch.cdist(points[start : start + BATCH], points)
        gaps[torch.arange(len(gaps)), torch.arange(start, start + len(gaps))] = -1.0  # itself comes first
        found = gaps.topk(count, largest=False)
        distances.append(found.values[:, 1:])
        indices.append(found.indices[:, 1])
        yield Progress(done + start + len(gaps), total)
    gaps, nearest = torch.cat(distances), torch.cat(indices)
    # the fast distances cancel where codes are nearly the same, which is where these must be right
    exact = (points - points[nearest]).square().sum(1).sqrt()
    return (exact, nearest, float(exact.median())), gaps.mean(1)


def near_duplicates(
    view: DatasetView, selection: Selection, places: list[dict], gaps: Tensor, nearest: Tensor, usual: float
) -> list[dict]:
    """Pairs of images, the closest first; `distance` is in units of the usual one, `pixels` the root mean square."""
    chosen = (gaps <= TWIN * usual).nonzero()[:, 0]
    pairs = sorted({tuple(sorted((i, int(nearest[i])))) for i in chosen[gaps[chosen].argsort(stable=True)].tolist()})
    found = []
    for one, other in pairs[: 10 * RANKED]:
        images = view.images(selection.positions[[one, other]])
        found.append(
            places[one]
            | {f"other_{name}": value for name, value in places[other].items()}
            | {"distance": float(min(gaps[one], gaps[other])) / usual if usual > 0 else 0.0}
            | {"pixels": float((images[0] - images[1]).square().mean().sqrt())}
        )
    return sorted(found, key=lambda row: row["distance"])


def _positions(view: DatasetView, pair: dict) -> list[int]:
    return [
        view.position(pair[f"{which}split"], pair[f"{which}index"]) for which in ("", "other_")
    ]  # fmt: skip


def explained(subject: Subject, images: Tensor) -> Tensor:
    """(3 n, 3, h, w): image, reconstruction, heat map in turn."""
    drawn = reconstruct(subject.model, images.to(subject.model.device))[1].cpu()
    colour = [part.expand(-1, 3, -1, -1) for part in (images, drawn)]
    return torch.stack([*colour, heat(images, drawn)], 1).flatten(0, 1)


def judge(scores: Tensor, strange: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve and average precision."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    values = scores.numpy()
    return {"auroc": float(roc_auc_score(strange, values)), "ap": float(average_precision_score(strange, values))}


def histogram(normal: Tensor, scores: Tensor) -> Curve:
    """Shares of both sets by score."""
    edges = torch.linspace(-3, 12, 31)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = {}
    for name, values in (("the model's own data", normal), ("this dataset", scores)):
        counts = torch.histogram(values.clamp(-3, 12).float(), edges).hist
        series[name] = (counts / len(values)).tolist()
    return Curve("Anomaly scores", "standard deviations from the usual error", "share of images", middles, series)
