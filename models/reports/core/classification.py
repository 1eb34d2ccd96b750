"""What reports on classifiers under attack share: labelled images, shares with intervals, a size to attack with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.attacks.core.access import WhiteBox
from models.evaluation.confidence import wilson
from models.evaluation.metrics import spaced_rows
from models.families.classifiers.adversarial_config import default_eps
from models.family import Family
from models.reports.core.base import Subject
from models.types import DataError

CHUNK = 50


def check_classes(subject: Subject) -> None:
    """Raises DataError when labels of the dataset do not mean classes of the model."""
    if subject.data.classes != subject.model.data.classes:
        raise DataError("the dataset's classes are not the model's", "dataset", "name the dataset it learned from")


def rows_of(subject: Subject, count: int) -> tuple[Tensor, Tensor]:
    """Validation images (n, c, h, w) and labels, evenly spaced: stored classes may follow one another."""
    check_classes(subject)
    found = (torch.cat(list(spaced_rows(subject.validation, name, count))) for name in ("images", "labels"))
    images, labels = (column.to(subject.model.device) for column in found)
    return images, labels


def eps_for(subject: Subject, eps: float | None, norm: str) -> float:
    """The asked size; else that the model was trained against, else what is usual for such images."""
    if eps is not None:
        return eps
    trained = getattr(subject.model.config, "adversarial_eps", None)
    same = trained is not None and getattr(subject.model.config, "adversarial_norm", None) == norm
    return trained if same else default_eps(subject.validation, norm)


def classes_of(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(n,) what is answered, a chunk at a time."""
    return torch.cat([network(part).argmax(1) for part in images.split(CHUNK)])


def white_box(model: Family) -> WhiteBox:
    return WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)


def share(name: str, hits: int, total: int) -> dict[str, Any]:
    """A share with its 95 % interval."""
    low, high = wilson(hits, total)
    return {name: hits / total if total else None, f"{name}_low": low, f"{name}_high": high}
