"""Criteria of success: a margin per image, below 0 exactly when the image is adversarial, and losses to increase."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from models.types import InputError

MIN_ENTROPY = 1e-6
"""Cross-entropy below which float32 has lost most digits of 1 - p."""


def others(logits: Tensor, index: Tensor) -> Tensor:
    """The logits with class `index` (N,) of each row at minus infinity."""
    return logits.scatter(1, index[:, None], -torch.inf)


def pick(logits: Tensor, index: Tensor) -> Tensor:
    """(N, K), (N,) -> (N,): the entry of one class per row."""
    return logits.gather(1, index[:, None])[:, 0]


def odds_against(logits: Tensor, index: Tensor) -> Tensor:
    """(N,): log((1 - p) / p) of one class per row, which orders images as cross-entropy does.

    The gradient is that of cross-entropy, not of the value. Where 1 - p underflows in float32, it is divided by 1 - p,
    which keeps its direction and restores its size.
    """
    entropy = torch.nn.functional.cross_entropy(logits, index, reduction="none")
    odds = others(logits, index).logsumexp(1) - pick(logits, index)
    return torch.where(entropy < MIN_ENTROPY, odds, entropy + (odds - entropy).detach())


@dataclass(frozen=True)
class Criterion(ABC):
    """Fields are tensors with one entry per image, or settings of all images."""

    @abstractmethod
    def margin(self, logits: Tensor) -> Tensor:
        """(N,): below 0 exactly when the image is adversarial."""

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor:
        """(N,): the loss that gradient attacks increase."""

    def margin_loss(self, logits: Tensor) -> Tensor:
        """(N,): minus the margin, or a differentiable substitute where the margin is a count. To be increased."""
        return -self.margin(logits)

    def dlr(self, logits: Tensor) -> Tensor:
        """(N,): minus the margin, invariant to the scale of the logits where that is defined. To be increased."""
        return self.margin_loss(logits)

    def surfaces(self, logits: Tensor, count: int) -> Tensor:
        """(N, at most `count`): functions of which one is below 0 exactly when the image is adversarial."""
        return self.margin(logits)[:, None]

    def given_clean_outputs(self, clean: Tensor) -> Self:
        """The criterion adapted to the `clean` outputs of the model; some parts of it may be dropped."""
        return self

    def take(self, index: Tensor) -> Self:
        """The criterion for the rows at `index`."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: row[index] for name, row in rows.items() if isinstance(row, Tensor) and row.ndim})

    def repeat(self, count: int) -> Self:
        """The criterion with each row repeated `count` times in succession."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: row for name, row in rows.items() if isinstance(row, Tensor) and row.ndim}
        return replace(self, **{name: row.repeat_interleave(count, 0) for name, row in tensors.items()})

    def check(self, logits: Tensor) -> None:  # noqa: B027
        """Raises InputError if the criterion cannot apply to such outputs."""


def check_classes(logits: Tensor, index: Tensor, field: str) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError("this attack needs a model with at least two classes", field="model")
    if bool(((index < 0) | (index >= logits.shape[1])).any()):
        raise InputError(f"{field} must be a class index from 0 to {logits.shape[1] - 1}", field=field)


@dataclass(frozen=True)
class Misclassified(Criterion):
    """Untargeted: margin = z_y - max_{i != y} z_i."""

    labels: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return pick(logits, self.labels) - others(logits, self.labels).amax(1)

    def loss(self, logits: Tensor) -> Tensor:
        return odds_against(logits, self.labels)

    def dlr(self, logits: Tensor) -> Tensor:
        """DLR = -(z_y - max_{i != y} z_i) / (z_pi1 - z_pi3)  (Croce & Hein 2020, eq. 6).

        z_pi1 >= z_pi2 >= ... are the sorted logits. For 2 classes: minus the margin.
        """
        if logits.shape[1] < 3:
            return -self.margin(logits)
        ordered = logits.topk(3, 1).values
        return -self.margin(logits) / (ordered[:, 0] - ordered[:, 2] + 1e-12)

    def surfaces(self, logits: Tensor, count: int) -> Tensor:
        rivals = others(logits, self.labels).topk(min(count, logits.shape[1] - 1), 1).values
        return pick(logits, self.labels)[:, None] - rivals

    def check(self, logits: Tensor) -> None:
        check_classes(logits, self.labels, "label")


@dataclass(frozen=True)
class Targeted(Criterion):
    """Targeted: margin = max_{i != t} z_i - z_t."""

    targets: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return others(logits, self.targets).amax(1) - pick(logits, self.targets)

    def loss(self, logits: Tensor) -> Tensor:
        return -odds_against(logits, self.targets)

    def dlr(self, logits: Tensor) -> Tensor:
        """-(max_{i != t} z_i - z_t) / (z_pi1 - (z_pi3 + z_pi4) / 2): eq. 7 with the largest other logit for z_y."""
        if logits.shape[1] < 4:
            return -self.margin(logits)
        ordered = logits.topk(4, 1).values
        return -self.margin(logits) / (ordered[:, 0] - ordered[:, 2:].mean(1) + 1e-12)

    def check(self, logits: Tensor) -> None:
        check_classes(logits, self.targets, "target")
