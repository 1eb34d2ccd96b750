"""Ranks a dataset by anomaly score; finds outliers and near duplicates."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes, reconstruct
from models.data import Columns
from models.evaluation.anomaly import Familiar, Measured, bound, enough_for_pca, heat, measure, pca_basis
from models.evaluation.dataset_view import DatasetView, Selection
from models.evaluation.metrics import spaced_rows
from models.reports.core.base import Curve, Progress, Report, ReportResult, Run, Subject, require_finite
from models.reports.core.codes import BATCH, CodesParams, view_of
from models.types import DataError

RANKED = 100
KNOWN = 2000  # training images whose codes are the known ones, at most
HEAT_MAPS = 16
NEAR_DUPLICATE = 0.2
"""Codes nearer than this fraction of the median nearest-neighbour distance are near duplicates."""


class AnomalyParams(CodesParams):
    """Which classes count as normal, and which images to rank."""

    normal: list[str | int] | None = Field(
        None,
        description="Normal classes, by name or index; all others count as anomalies, and AUROC and average precision "
        "of each score are reported. Default: none.",
    )


class AnomalyReport(Report):
    """Scores are in standard deviations from their mean on the model's own validation data.

    Images are ranked by the mean of three scores: the reconstruction error, the distance to the nearest codes of
    training images, and the error of PCA of the latent size. At most 5 % and 1 % of normal images are expected above
    the thresholds; `false_alarms` is the 95 % interval of the first. A vae also has a score of its -ELBO. With
    `normal`, AUROC and average precision of each score. Outliers are
    far from every other code of the dataset; near duplicates are much closer than the median distance to the nearest
    code. `split: all` ranks the whole dataset.
    """

    name = "anomaly"
    summary = "Ranks a dataset by anomaly score; finds outliers and near duplicates."
    needs = (Encodes, Decodes)
    Params = AnomalyParams

    def run(self, subject: Subject, params: AnomalyParams, progress_state: Any = None) -> Run:
        view = view_of(subject)
        selection = view.select(params.split, params.images)
        if len(selection) < 2:
            raise DataError(
                "two images are needed for a ranking, and there is one",
                "dataset",
                "use split: all, or a larger dataset",
            )
        reference = subject.model_validation or subject.validation or subject.train
        anomalous = anomalies(view, selection, subject, params)
        if anomalous is not None and subject.model_validation is None:
            raise DataError(
                "`normal` needs the dataset the model was trained on, which was deleted", "model", "leave `normal` out"
            )
        rows = reference_rows(subject, reference, params)
        total = len(rows) + 2 * len(selection) + KNOWN
        basis = fit_basis(subject, reference, rows)
        normal = yield from measure_rows(subject, basis, reference, rows, 0, total)
        measured = yield from measure_rows(subject, basis, view, selection.positions, len(rows), total)
        known = yield from known_codes(subject, params, len(rows) + len(selection), total)
        familiar = Familiar(normal, known)
        scores = familiar.scores(measured)
        pairs_of, isolation = yield from neighbours(measured.codes, total - len(selection), total)
        facts: dict[str, Any] = {"images": len(selection), "home_images": len(rows)}
        for quantile, threshold in familiar.thresholds("score").items():
            above = float((scores["score"] > threshold).double().mean())
            facts |= {f"threshold_{quantile}": threshold, f"above_{quantile}": above}
        facts["false_alarms"] = dict(zip(("low", "high"), familiar.false_alarms(0.95), strict=True))
        if anomalous is not None:
            facts |= {
                f"{score}_{name}": value
                for score, values in scores.items()
                for name, value in detection_quality(values, anomalous).items()
            }
        places = view.describe(selection.positions)
        order = scores["score"].argsort(descending=True, stable=True)[:RANKED].tolist()
        isolated = isolation.argsort(descending=True, stable=True)[:RANKED].tolist()
        pairs = near_duplicates(view, selection, places, *pairs_of)
        facts |= {"near_duplicates": len(pairs)}
        facts |= {"near_duplicates_across_splits": sum(row["split"] != row["other_split"] for row in pairs)}
        tables = {
            "most_unusual": [
                places[i]
                | {"mse": float(measured.errors[i])}
                | {name: float(values[i]) for name, values in scores.items()}
                for i in order
            ],
            "outliers": [places[i] | {"distance": float(isolation[i])} for i in isolated],
            "near_duplicates": pairs[:RANKED],
        }
        pictures = {
            "most_unusual": view.images(selection.positions[order[:64]]),
            "outliers": view.images(selection.positions[isolated[:64]]),
            "heat_maps": heat_maps(subject, view.images(selection.positions[order[:HEAT_MAPS]])),
        }
        if pairs:
            pictures["near_duplicates"] = view.images(
                torch.tensor([p for row in pairs[:32] for p in _positions(view, row)])
            )
        return ReportResult(facts, tables, [histogram(familiar.sorted_scores["score"], scores["score"])], pictures)


def anomalies(view: DatasetView, selection: Selection, subject: Subject, params: AnomalyParams) -> np.ndarray | None:
    """(n,) bool: images of classes outside `params.normal`; None without it. Raises DataError for a useless choice."""
    if params.normal is None:
        return None
    labels = view.labels(selection.positions)
    if labels is None:
        raise DataError("`normal` names classes, and this dataset has no labels", "params/normal", "leave it out")
    normal = {subject.data.class_index(label) for label in params.normal}
    anomalous = ~np.isin(labels.numpy(), list(normal))
    if anomalous.all() or not anomalous.any():
        raise DataError(
            f"{int(anomalous.sum())} of {len(anomalous)} images are anomalies for these classes; both kinds are needed",
            "params/normal",
            "name some of the classes of these images, not all",
        )
    return anomalous


def reference_rows(subject: Subject, reference: Columns, params: AnomalyParams, limit: int | None = None) -> Tensor:
    """Evenly spaced rows of the model's own data, of the normal classes only if `params.normal` names some."""
    count = len(reference)
    rows = torch.linspace(0, count - 1, min(count, limit or params.images), dtype=torch.float64).long()
    if params.normal is None or "labels" not in reference:
        return rows
    classes = torch.tensor([subject.model.data.class_index(label) for label in params.normal])
    normal = rows[torch.isin(reference.rows(rows, ["labels"])["labels"].cpu(), classes)]
    return normal if len(normal) > 1 else rows


def fit_basis(subject: Subject, reference: Columns, rows: Tensor) -> Tensor:
    """PCA basis of the model's training images; with `normal` or without those, of the rows that count as normal."""
    limit = enough_for_pca(subject.model.data.pixels)
    if subject.model_train is not None and len(rows) == len(reference):  # all classes
        images = torch.cat(list(spaced_rows(subject.model_train, limit=limit)))
    else:
        images = reference.rows(rows[:limit], ["images"])["images"]
    return pca_basis(images.cpu(), subject.model.latent_dim)


def known_codes(
    subject: Subject, params: AnomalyParams, start: int, total: int
) -> Generator[Progress, None, Tensor | None]:
    """Codes of the model's training images, of the normal classes only; None if they were deleted."""
    train = subject.model_train
    if train is None:
        return None
    rows, codes = reference_rows(subject, train, params, KNOWN), []
    for part in rows.split(BATCH):
        images = train.rows(part, ["images"])["images"].to(subject.model.device)
        codes.append(subject.model.encode(images).cpu())
        yield Progress(start + min(KNOWN, BATCH * len(codes)), total)
    return require_finite(torch.cat(codes), "the code")


def measure_rows(
    subject: Subject, basis: Tensor, source: Columns | DatasetView, rows: Tensor, start: int, total: int
) -> Generator[Progress, None, Measured]:
    """Codes and errors of the images at `rows`, and their -ELBO if the model has one. Progress counts from `start`."""
    function, measures = measure(subject.model, basis), []
    negative_elbo, bounds = bound(subject.model), []
    count = start
    for part in rows.split(BATCH):
        images = source.images(part) if isinstance(source, DatasetView) else source.rows(part, ["images"])["images"]
        images = images.to(subject.model.device)
        measures.append(function(images).cpu())
        bounds += [negative_elbo(images).cpu()] if negative_elbo else []
        count += len(part)
        yield Progress(count, total)
    rows = require_finite(torch.cat(measures), "the code or the error")
    return Measured.from_rows(rows, require_finite(torch.cat(bounds), "-ELBO") if bounds else None)


def neighbours(
    points: Tensor, done_before: int, total: int
) -> Generator[Progress, None, tuple[tuple[Tensor, Tensor, float], Tensor]]:
    """((distance to the nearest other code (n,), its index (n,), median distance), mean of the 5 smallest (n,))."""
    count = min(6, len(points))
    distances, indices = [], []
    for start in range(0, len(points), BATCH):
        gaps = torch.cdist(points[start : start + BATCH], points)
        gaps[torch.arange(len(gaps)), torch.arange(start, start + len(gaps))] = -1.0  # sorts each point itself first
        smallest = gaps.topk(count, largest=False)
        distances.append(smallest.values[:, 1:])
        indices.append(smallest.indices[:, 1])
        yield Progress(done_before + start + len(gaps), total)
    gaps, nearest = torch.cat(distances), torch.cat(indices)
    # cdist loses digits for codes that are nearly equal, and these are the ones that count
    exact = (points - points[nearest]).square().sum(1).sqrt()
    return (exact, nearest, float(exact.median())), gaps.mean(1)


def near_duplicates(
    view: DatasetView, selection: Selection, places: list[dict], gaps: Tensor, nearest: Tensor, median: float
) -> list[dict]:
    """Pairs of near duplicates, closest first: `distance` in units of `median`, `pixels` is the RMS difference."""
    close = (gaps <= NEAR_DUPLICATE * median).nonzero()[:, 0]
    pairs = sorted({tuple(sorted((i, int(nearest[i])))) for i in close[gaps[close].argsort(stable=True)].tolist()})
    rows = []
    for one, other in pairs[: 10 * RANKED]:
        images = view.images(selection.positions[[one, other]])
        rows.append(
            places[one]
            | {f"other_{name}": value for name, value in places[other].items()}
            | {"distance": float(min(gaps[one], gaps[other])) / median if median > 0 else 0.0}
            | {"pixels": float((images[0] - images[1]).square().mean().sqrt())}
        )
    return sorted(rows, key=lambda row: row["distance"])


def _positions(view: DatasetView, pair: dict) -> list[int]:
    return [
        view.position(pair[f"{which}split"], pair[f"{which}index"]) for which in ("", "other_")
    ]  # fmt: skip


def heat_maps(subject: Subject, images: Tensor) -> Tensor:
    """(3 n, 3, h, w): for each image (n) the image, its reconstruction and the heat map of errors."""
    reconstructions = reconstruct(subject.model, images.to(subject.model.device))[1].cpu()
    colour = [part.expand(-1, 3, -1, -1) for part in (images, reconstructions)]
    return torch.stack([*colour, heat(images, reconstructions)], 1).flatten(0, 1)


def detection_quality(scores: Tensor, anomalous: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve and average precision of scores (n,) for `anomalous` (n,)."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    values = scores.numpy()
    return {"auroc": float(roc_auc_score(anomalous, values)), "ap": float(average_precision_score(anomalous, values))}


def histogram(normal: Tensor, scores: Tensor) -> Curve:
    """Histograms of the scores of normal data and of this dataset."""
    edges = torch.linspace(-3, 12, 31)
    middles = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = {}
    for name, values in (("the model's own data", normal), ("this dataset", scores)):
        counts = torch.histogram(values.clamp(-3, 12).float(), edges).hist
        series[name] = (counts / len(values)).tolist()
    return Curve("Anomaly scores", "standard deviations from the mean score", "fraction of images", middles, series)
