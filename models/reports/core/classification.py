"""Shared by reports on classifiers under attack: labelled images, rates with intervals, eps, records as JSON."""

import base64
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.attacks.core.access import WhiteBox
from models.capabilities import UNDECIDED, predicted_classes
from models.evaluation.confidence import wilson
from models.evaluation.metrics import spaced_rows
from models.families.classifiers.adversarial_config import default_eps
from models.family import Family
from models.reports.core.base import Subject
from models.types import DataError, DataSpec

CHUNK = 50


def check_classes(subject: Subject) -> None:
    """Raises DataError when the dataset and the model have different classes."""
    if subject.data.classes != subject.model.data.classes:
        raise DataError(
            "the dataset's classes differ from the model's", "dataset", "use the dataset the model was trained on"
        )


def class_indices(model: DataSpec, data: DataSpec) -> Tensor:
    """(K,): the model's index of each class of the dataset, matched by name, or by position if there are no names.

    Raises DataError for a class of the dataset that the model does not have.
    """
    if not model.classes or not data.classes:
        return torch.arange(len(data.classes or model.classes or ()) or 1000)
    unknown = [name for name in data.classes if name not in model.classes]
    if unknown and len(model.classes) != len(data.classes):
        raise DataError(
            f"the model has no class {unknown[0]!r}, which the dataset has",
            "dataset",
            "use a dataset with the classes that the model learned",
        )
    if unknown:
        return torch.arange(len(data.classes))
    return torch.tensor([model.classes.index(name) for name in data.classes])


def labelled_images(subject: Subject, count: int) -> tuple[Tensor, Tensor]:
    """At most `count` validation images (n, c, h, w) and labels (n,), evenly spaced: rows may be sorted by class.

    Those for which the model's logits are not finite are left out.
    """
    check_classes(subject)
    columns = (torch.cat(list(spaced_rows(subject.validation, name, count))) for name in ("images", "labels"))
    images, labels = (column.to(subject.model.device) for column in columns)
    return decided(subject.model.logits, images, labels)


def decided(logits: Callable[[Tensor], Tensor], images: Tensor, *columns: Tensor) -> tuple[Tensor, ...]:
    """The images for which the logits are finite, and the rows of `columns` that belong to them; one forward pass.

    The others are left out of every rate and counted by `counting_nonfinite`. Raises DataError if none is left.
    """
    rows = predict(logits, images) != UNDECIDED
    if not bool(rows.any()):
        raise DataError(
            f"the model's output is not finite for any of the {len(images)} images", "model", "use another model"
        )
    return tuple(column if bool(rows.all()) else column[rows] for column in (images, *columns))


def eps_for(subject: Subject, eps: float | None, norm: str) -> float:
    """`eps` if given; else the eps the model was trained against; else the default for such images."""
    if eps is not None:
        return eps
    trained = getattr(subject.model.config, "adversarial_eps", None)
    same = trained is not None and getattr(subject.model.config, "adversarial_norm", None) == norm
    return trained if same else default_eps(subject.validation, norm)


@torch.no_grad()
def predict(logits: Callable[[Tensor], Tensor], images: Tensor, chunk: int = CHUNK) -> Tensor:
    """(n,): predicted class indices, UNDECIDED without finite logits, computed in chunks of `chunk` images."""
    return torch.cat([predicted_classes(logits(part)) for part in images.split(chunk)])


def classifier_access(model: Family) -> WhiteBox:
    """White-box access to the logits of a classifier."""
    return WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)


def rate(name: str, hits: int, total: int) -> dict[str, Any]:
    """hits / total (None if `total` is 0) with its 95 % Wilson interval, under `name`, `name`_low and `name`_high."""
    low, high = wilson(hits, total)
    return {name: hits / total if total else None, f"{name}_low": low, f"{name}_high": high}


def pack_hits(hits: Tensor) -> list[int]:
    """(N, E) bool -> N integers; bit e of integer n is hits[n, e]."""
    return [sum(1 << place for place, hit in enumerate(row) if hit) for row in hits.tolist()]


def unpack_hits(numbers: list[int], columns: int) -> Tensor:
    """The inverse of `pack_hits`: (N, columns) bool."""
    return torch.tensor([[bool(number >> place & 1) for place in range(columns)] for number in numbers])


def joined(records: list[dict[str, Any]], key: str) -> list:
    """The lists under `key` of all records, one after another."""
    return [value for record in records for value in record[key]]


def pack_images(images: Tensor) -> str:
    """Images in [0, 1] as 8 bits, compressed to base64 text for a checkpoint."""
    return base64.b64encode(zlib.compress((images * 255).round().byte().cpu().numpy().tobytes(), 9)).decode()


def unpack_images(text: str, shape: tuple[int, int, int]) -> Tensor:
    """The inverse of `pack_images`: (n, *shape) in [0, 1]."""
    data = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)
    return data.view(-1, *shape) / 255
