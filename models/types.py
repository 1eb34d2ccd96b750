"""What crosses the borders of this package: the facts of a dataset, and the errors a caller can act on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Batch = Mapping[str, Tensor]
"""Columns of one mini-batch: images (b, c, h, w) in [0, 1], labels (b,) int64, masks (b, h, w) int64, targets (b,)."""

Metrics = dict[str, Tensor]
"""Scalars of one update, still on the device: nothing in a step waits for them."""


class ModelError(ValueError):
    """Base of the errors this package raises for what a caller gave; `code` is stable, `field` names the culprit."""

    code = "invalid-request"

    def __init__(self, detail: str, field: str | None = None, remedy: str | None = None):
        super().__init__(detail)
        self.detail, self.field, self.remedy = detail, field, remedy


class ConfigError(ModelError):
    """A hyper-parameter, or a combination of them, that cannot work."""

    code = "invalid-config"


class DataError(ModelError):
    """The dataset lacks what the family needs."""

    code = "invalid-dataset"


class InputError(ModelError):
    """An input of an operation (image, latents, label) that does not fit the model."""

    code = "invalid-request"


class Diverged(ModelError):
    """The loss or the weights are no longer finite."""

    code = "diverged"


@dataclass(frozen=True)
class Fitted:
    """What a report leaves for an operation to use: tensors by name, and facts that are plain JSON."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSpec:
    """The facts of a dataset that shape a network. `columns` counts rows by split and column.

    `twins`: validation rows n of the columns a and b show the same thing, so a translation can be scored.
    `ages` are those of the training images, at evenly spaced places from the youngest to the oldest; `identities` is
    how many different ones the training images have.
    """

    layout: str
    height: int
    width: int
    channels: int
    classes: tuple[str, ...] | None = None
    columns: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    twins: bool = False
    ages: tuple[float, ...] | None = None
    identities: int | None = None

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "DataSpec":
        classes = facts.get("classes")
        names = tuple(classes) if classes else None
        size = facts["height"], facts["width"], facts["channels"]
        ages = facts.get("ages")
        people = tuple(ages) if ages else None, facts.get("identities")
        return cls(facts["layout"], *size, names, facts.get("columns", {}), facts.get("twins", False), *people)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.channels, self.height, self.width

    @property
    def pixels(self) -> int:
        """Numbers per image, C*H*W."""
        return self.channels * self.height * self.width

    @property
    def count(self) -> int:
        """Training images: rows of the longest training column."""
        return max(self.columns.get("train", {}).values(), default=0)

    def class_index(self, label: str | int) -> int:
        """The index of a class given by name or index. Raises InputError when there is no such class."""
        names = self.classes or ()
        if isinstance(label, str) and label in names:
            return names.index(label)
        text = str(label)
        if text.isdecimal() and int(text) < len(names):
            return int(text)
        allowed = f"one of {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}" if names else "none: no classes"
        raise InputError(f"there is no such class; allowed is {allowed}", field="label")
