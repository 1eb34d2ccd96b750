"""Which images does the model not know? Reconstruction error, standardised on data the model is at home with."""

from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.data import Columns
from models.family import Decodes, Encodes
from models.reports.codes import BATCH, column, standardised
from models.reports.core import Curve, Findings, Params, Progress, Report, Run, Subject
from models.types import DataError

RANKED = 100
NEIGHBOURS = 5


class AnomalyParams(Params):
    """What counts as normal, and how much to look at."""

    normal: list[str | int] | None = Field(
        None, description="Classes that are normal, by name or index; the others are anomalies and scores are judged."
    )
    images: int = Field(10_000, ge=2, le=100_000, description="At most so many images, from the validation split.")


class AnomalyReport(Report):
    """Scores every image by its reconstruction error in standard deviations of the model's own validation data.

    Thresholds are the 95 % and 99 % quantiles there. With `normal`, AUROC and average precision, beside those of PCA
    reconstruction and of the distance to the nearest codes, both fitted on the model's own validation data.
    """

    name = "anomaly"
    summary = "Ranks a dataset by how unfamiliar its images are to the model."
    needs = (Encodes, Decodes)
    Params = AnomalyParams

    def run(self, subject: Subject, params: AnomalyParams, kept: Any = None) -> Run:
        home = subject.home or subject.validation
        strange = self._anomalies(subject, params)
        if strange is not None and subject.home is None:
            raise DataError("the model's own dataset is gone, so nothing says what is normal", "model")
        keep = self._home_rows(subject, home, params)
        total = len(keep) + min(len(subject.validation), params.images)
        known = yield from measure(subject.model, home.rows(keep)["images"], 0, total)
        images = column(subject.validation, "images", params.images)
        found = yield from measure(subject.model, images, len(keep), total)
        scores = (found["errors"] - known["errors"].mean()) / known["errors"].std().clamp_min(1e-12)
        normal = (known["errors"] - known["errors"].mean()) / known["errors"].std().clamp_min(1e-12)
        facts = {"images": len(images), "home_images": len(keep)}
        for share in (0.95, 0.99):
            threshold = float(normal.quantile(share))
            facts |= {
                f"threshold_{share:.2f}": threshold,
                f"above_{share:.2f}": float((scores > threshold).float().mean()),
            }
        if strange is not None:
            rivals = {
                "model": scores,
                "pca": pca_errors(known["images"], images, subject.model.latent_dim),
                "knn": neighbour_distances(known["codes"], found["codes"]),
            }
            facts |= {
                f"{name}_{key}": value for name, rival in rivals.items() for key, value in judge(rival, strange).items()
            }
        order = scores.argsort(descending=True)
        table = [{"index": int(i), "score": float(scores[i]), "mse": float(found["errors"][i])} for i in order[:RANKED]]
        return Findings(
            facts, {"most_unusual": table}, [histogram(normal, scores)], {"most_unusual": images[order[:64]]}
        )

    def _anomalies(self, subject: Subject, params: AnomalyParams) -> np.ndarray | None:
        """Which of the images are anomalies, when `normal` says so."""
        if params.normal is None:
            return None
        if "labels" not in subject.validation:
            raise DataError("`normal` names classes, and this dataset has no labels", "params/normal")
        wanted = {subject.data.class_index(label) for label in params.normal}
        strange = ~np.isin(column(subject.validation, "labels", params.images).numpy(), list(wanted))
        if strange.all() or not strange.any():
            raise DataError("`normal` must leave both normal images and anomalies", "params/normal")
        return strange

    def _home_rows(self, subject: Subject, home: Columns, params: AnomalyParams) -> Tensor:
        """Rows of the model's own data that count as normal."""
        rows = torch.arange(min(len(home), params.images))
        if params.normal is None or "labels" not in home:
            return rows
        classes = torch.tensor([subject.model.data.class_index(label) for label in params.normal])
        kept = rows[torch.isin(column(home, "labels", len(rows)), classes)]
        return kept if len(kept) > 1 else rows


def measure(model: Any, images: Tensor, done: int, total: int) -> Generator[Progress, None, dict[str, Tensor]]:
    """Codes and mean squared reconstruction errors of `images`."""
    codes, errors = [], []
    for part in images.split(BATCH):
        part = part.to(model.device)
        codes.append(model.encode(part))
        errors.append((model.decode(codes[-1]) - part).square().flatten(1).mean(1))
        done += len(part)
        yield Progress(done, total)
    return {"codes": torch.cat(codes).cpu(), "errors": torch.cat(errors).cpu(), "images": images}


def pca_errors(known: Tensor, images: Tensor, dimensions: int) -> Tensor:
    """Mean squared error of projecting `images` on the leading axes of `known`."""
    mean = known.flatten(1).mean(0)
    centred = known.flatten(1) - mean
    rank = min(dimensions, *centred.shape)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:rank]
    rest = images.flatten(1) - mean
    return (rest - rest @ axes.T @ axes).square().mean(1)


def neighbour_distances(known: Tensor, codes: Tensor) -> Tensor:
    """Mean distance to the nearest known codes."""
    count = min(NEIGHBOURS, len(known))
    reference = standardised(known)
    parts = standardised(codes, known).split(1024)
    return torch.cat([torch.cdist(part, reference).topk(count, largest=False).values.mean(1) for part in parts])


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
