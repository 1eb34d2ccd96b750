"""Metrics of trained models and trivial baselines. Work and memory are bounded by the number of rows used."""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from models.data import Columns

ROWS = 10_000  # of a split, at most
NUMBERS = 32_000_000  # in an array, at most (128 MB)
CHUNK = 256  # rows at a time


def spaced_rows(columns: Columns, name: str = "images", limit: int = ROWS) -> Iterator[Tensor]:
    """At most `limit` rows of a column, evenly spaced over it, in chunks."""
    count = len(columns.columns[name])
    indices = torch.arange(count) if count <= limit else torch.linspace(0, count - 1, limit).long()
    for part in indices.split(CHUNK):
        yield columns.rows(part, [name])[name]


def gather(columns: Columns, function: Callable[[Tensor], Tensor], device: torch.device, limit: int = ROWS) -> Tensor:
    """`function` of the images of at most `limit` evenly spaced rows, computed in chunks, on the host."""
    return torch.cat([function(images.to(device)).cpu() for images in spaced_rows(columns, limit=limit)])


def psnr(mse: float) -> float:
    """Peak signal to noise ratio in decibels, for a peak of 1; 100 at most, so that a perfect copy stays a number."""
    return -10 * math.log10(max(mse, 1e-10))


def row_psnr(images: Tensor, target: Tensor) -> Tensor:
    """(b, c, h, w) twice -> (b,): the PSNR of each image."""
    return -10 * torch.log10((images - target).square().flatten(1).mean(1).clamp_min(1e-10))


class Pca:
    """The best linear autoencoder of a given code size: the baseline of autoencoders."""

    def __init__(self, rows: Tensor, rank: int):
        """`rows` (n, D). Exact for D up to 1024, else by subspace iteration."""
        self.mean = rows.mean(0)
        self.basis = principal_axes(rows - self.mean, min(rank, *rows.shape))

    def reconstruct(self, rows: Tensor) -> Tensor:
        """(n, D) -> (n, D)."""
        return (rows - self.mean) @ self.basis.T @ self.basis + self.mean


def principal_axes(centred: Tensor, rank: int) -> Tensor:
    """(n, D) -> (rank, D): orthonormal axes of greatest variance, greatest first."""
    count, width = centred.shape
    if width <= 1024:
        return torch.linalg.eigh((centred.T @ centred).double())[1].flip(1)[:, :rank].T.to(centred.dtype)
    sketch = min(rank + 16, count, width)
    basis = torch.randn(width, sketch, generator=torch.Generator().manual_seed(0)).to(centred)
    for _ in range(8):  # Halko et al. 2011, algorithm 4.4
        basis = torch.linalg.qr(centred.T @ (centred @ torch.linalg.qr(basis)[0]))[0]
    small = torch.linalg.eigh(((centred @ basis).T @ (centred @ basis)).double())[1].flip(1)[:, :rank]
    return (basis @ small.to(basis)).T


def pca_mse(train: Columns, validation: Columns, rank: int) -> float:
    """Validation error per pixel of PCA with `rank` axes, fitted on at most 10 000 training rows and 128 MB."""
    first = train.rows(torch.tensor([0]), ["images"])["images"]
    limit = max(2, min(ROWS, NUMBERS // first.numel()))
    pca = Pca(torch.cat([images.flatten(1).cpu() for images in spaced_rows(train, limit=limit)]), rank)
    total, count = 0.0, 0
    for images in spaced_rows(validation, limit=limit):
        rows = images.flatten(1).cpu()
        total, count = total + float((pca.reconstruct(rows).clamp(0, 1) - rows).square().sum()), count + rows.numel()
    return total / count


def mean_image(split: Columns) -> Tensor:
    """The mean (c, h, w) of at most 10 000 images, on the host."""
    total, count = 0.0, 0
    for images in spaced_rows(split):
        total, count = total + images.cpu().double().sum(0), count + len(images)
    return (total / count).float()


def mean_image_mse(train: Columns, validation: Columns) -> float:
    """Validation error per pixel of the mean training image as a constant prediction."""
    mean, error, numbers = mean_image(train), 0.0, 0
    for images in spaced_rows(validation):
        error, numbers = error + float((images.cpu() - mean).square().sum()), numbers + images.numel()
    return error / numbers


def nearest(queries: Tensor, reference: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """(q, d), (n, d) -> distances and indices (q, count) of the nearest rows, nearest first."""
    chunks = [torch.cdist(part, reference).topk(count, largest=False) for part in queries.split(CHUNK)]
    return torch.cat([chunk.values for chunk in chunks]), torch.cat([chunk.indices for chunk in chunks])


def knn_accuracy(reference: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, neighbours: int = 5) -> float:
    """Accuracy of the majority label of the nearest reference rows; the nearer row wins a tie."""
    votes = labels[nearest(queries, reference, min(neighbours, len(reference)))[1]]  # (q, k)
    counts = (votes[:, :, None] == votes[:, None, :]).sum(2)
    return float((votes.gather(1, counts.argmax(1, keepdim=True))[:, 0] == truth).double().mean())


def active_units(means: Tensor, threshold: float = 0.01) -> int:
    """Dimensions of posterior means (n, d) that vary with the image (Burda et al. 2016, section 5.2)."""
    return int((means.var(0, correction=0) > threshold).sum())


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean |confidence - accuracy| over bins of confidence (Guo et al. 2017, eq. 3)."""
    confidence, predicted = logits.softmax(1).max(1)
    correct = (predicted == labels).double()
    index = (confidence * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, confidence.double() - correct)
    return float(gaps.abs().sum() / max(len(labels), 1))


def linear_softmax_accuracy(rows: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, classes: int) -> float:
    """Accuracy of multinomial logistic regression on standardised rows (n, D)."""
    mean, scale = rows.mean(0), rows.std(0, correction=0).clamp_min(0.05)
    rows, queries = (rows - mean) / scale, (queries - mean) / scale
    weight = torch.zeros(rows.shape[1], classes, requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=40, history_size=5, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(rows @ weight + bias, labels) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(objective)
    return float(((queries @ weight + bias).argmax(1) == truth).double().mean())


def linear_baseline(train: Columns, validation: Columns, classes: int) -> float:
    """Validation accuracy of a linear classifier of pixels, averaged to 16x16 above two million weights."""

    def pixels(images: Tensor) -> Tensor:
        small = images.flatten(1).shape[1] * classes <= 2_000_000
        return (images if small else F.adaptive_avg_pool2d(images, 16)).flatten(1)

    host, width = torch.device("cpu"), pixels(train.rows(torch.tensor([0]), ["images"])["images"]).shape[1]
    limit = max(2, min(ROWS, NUMBERS // width))
    rows = [gather(split, pixels, host, limit) for split in (train, validation)]
    labels = [torch.cat(list(spaced_rows(split, "labels", limit))).cpu() for split in (train, validation)]
    return linear_softmax_accuracy(rows[0], labels[0], rows[1], labels[1], classes)


def linear_mae(train: Columns, validation: Columns) -> float:
    """Mean absolute error of ridge regression on pixels, averaged to 16x16 above 1024 numbers per image."""

    def pixels(images: Tensor) -> Tensor:
        return (images if images[0].numel() <= 1024 else F.adaptive_avg_pool2d(images, 16)).flatten(1)

    host = torch.device("cpu")
    rows, queries = (gather(split, pixels, host, 5000).double() for split in (train, validation))
    targets, truth = (
        torch.cat(list(spaced_rows(split, "targets", 5000))).cpu().double() for split in (train, validation)
    )
    centred = rows - rows.mean(0)
    ridge = 1e-3 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (targets - targets.mean()))
    return float(((queries - rows.mean(0)) @ weight + targets.mean() - truth).abs().mean())
