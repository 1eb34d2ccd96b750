"""When an image counts as adversarial: a margin per image, below zero exactly then, and losses to climb towards it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from models.types import InputError

SURE = 1e-6
"""Cross-entropy below which float32 has lost most digits of 1 - p."""


def others(logits: Tensor, index: Tensor) -> Tensor:
    """The logits with class `index` (N,) of each row at minus infinity."""
    return logits.scatter(1, index[:, None], -torch.inf)


def pick(logits: Tensor, index: Tensor) -> Tensor:
    """(N, K), (N,) -> (N,): one class of each row."""
    return logits.gather(1, index[:, None])[:, 0]


def odds_against(logits: Tensor, index: Tensor) -> Tensor:
    """(N,): log((1 - p) / p) of one class of each row, which orders images as cross-entropy does.

    The gradient is that of cross-entropy, not of the value. Where it dies in float32, because the model is all but
    sure, it is divided by 1 - p, which leaves its direction and brings it back to life.
    """
    entropy = torch.nn.functional.cross_entropy(logits, index, reduction="none")
    odds = others(logits, index).logsumexp(1) - pick(logits, index)
    return torch.where(entropy < SURE, odds, entropy + (odds - entropy).detach())


@dataclass(frozen=True)
class Criterion(ABC):
    """Fields are tensors with one entry per image, or plain settings."""

    @abstractmethod
    def margin(self, logits: Tensor) -> Tensor:
        """(N,), below 0 exactly when the image is adversarial."""

    @abstractmethod
    def loss(self, logits: Tensor) -> Tensor:
        """(N,), to be climbed."""

    def margin_loss(self, logits: Tensor) -> Tensor:
        """(N,), to be climbed: the margin itself or, where it only counts, differences of logits in its place."""
        return -self.margin(logits)

    def dlr(self, logits: Tensor) -> Tensor:
        """(N,), to be climbed: the margin, made independent of the scale of the logits where that can be done."""
        return self.margin_loss(logits)

    def surfaces(self, logits: Tensor, count: int) -> Tensor:
        """(N, at most `count`) functions; the image is adversarial when one of them is below 0."""
        return self.margin(logits)[:, None]

    def given_clean_outputs(self, clean: Tensor) -> Self:
        """The criterion towards a model that answers the images as they are with `clean`: it may ask for less."""
        return self

    def take(self, index: Tensor) -> Self:
        """The criterion of the rows at `index`."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: row[index] for name, row in rows.items() if isinstance(row, Tensor) and row.ndim})

    def repeat(self, count: int) -> Self:
        """Each row `count` times in a row."""
        rows = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: row for name, row in rows.items() if isinstance(row, Tensor) and row.ndim}
        return replace(self, **{name: row.repeat_interleave(count, 0) for name, row in tensors.items()})

    def check(self, logits: Tensor) -> None:  # noqa: B027
        """Raises InputError when the criterion cannot apply to such outputs."""


def check_classes(logits: Tensor, index: Tensor, field: str) -> None:
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise InputError("only a model with at least two classes can be made to misclassify", field="model")
    if bool(((index < 0) | (index >= logits.shape[1])).any()):
        raise InputError(f"a class is out of range; allowed is 0 to {logits.shape[1] - 1}", field=field)


@dataclass(frozen=True)
class Misclassified(Criterion):
    """Any class but the right one: margin = z_y - max of the others."""

    labels: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return pick(logits, self.labels) - others(logits, self.labels).amax(1)

    def loss(self, logits: Tensor) -> Tensor:
        return odds_against(logits, self.labels)

    def dlr(self, logits: Tensor) -> Tensor:
        """Difference of logits ratio (Croce & Hein 2020, eq. 6); the bare margin where there are only 2 classes."""
        if logits.shape[1] < 3:
            return -self.margin(logits)
        ordered = logits.topk(3, 1).values
        return -self.margin(logits) / (ordered[:, 0] - ordered[:, 2] + 1e-12)

    def surfaces(self, logits: Tensor, count: int) -> Tensor:
        rest = others(logits, self.labels).topk(min(count, logits.shape[1] - 1), 1).values
        return pick(logits, self.labels)[:, None] - rest

    def check(self, logits: Tensor) -> None:
        check_classes(logits, self.labels, "label")


@dataclass(frozen=True)
class Targeted(Criterion):
    """One wanted class: margin = max of the others - z_t."""

    targets: Tensor

    def margin(self, logits: Tensor) -> Tensor:
        return others(logits, self.targets).amax(1) - pick(logits, self.targets)

    def loss(self, logits: Tensor) -> Tensor:
        return -odds_against(logits, self.targets)

    def dlr(self, logits: Tensor) -> Tensor:
        """The targeted form (eq. 7) with the leading class in place of the right one."""
        if logits.shape[1] < 4:
            return -self.margin(logits)
        ordered = logits.topk(4, 1).values
        return -self.margin(logits) / (ordered[:, 0] - ordered[:, 2:].mean(1) + 1e-12)

    def check(self, logits: Tensor) -> None:
        check_classes(logits, self.targets, "target")
