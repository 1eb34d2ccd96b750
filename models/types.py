"""Types used at the border of this package: the facts of a dataset, batches, and errors for callers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Batch = Mapping[str, Tensor]
"""Columns of a mini-batch: images (b, c, h, w) in [0, 1], labels (b,) int64, masks (b, h, w) int64, targets (b,)."""

Metrics = dict[str, Tensor]
"""Scalars of one update, on the device: a step does not wait for their values."""


class ModelError(ValueError):
    """Base of errors caused by the caller's input; `code` is stable, `field` is the name of the input."""

    code = "invalid-request"

    def __init__(self, detail: str, field: str | None = None, remedy: str | None = None):
        super().__init__(detail)
        self.detail, self.field, self.remedy = detail, field, remedy


class ConfigError(ModelError):
    """A setting, or a combination of settings, that cannot work."""

    code = "invalid-config"


class DataError(ModelError):
    """The dataset lacks what the family needs."""

    code = "invalid-dataset"


class InputError(ModelError):
    """An input of an operation (image, latents, label) that the model cannot take."""

    code = "invalid-request"


class Diverged(ModelError):
    """The loss or the weights are not finite."""

    code = "diverged"


@dataclass(frozen=True)
class ReportArtefact:
    """What a report stores for later operations: named tensors and JSON facts (a clustering, for example)."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


def class_index(names: Sequence[str], label: str | int) -> int:
    """The index of the class with this name, given as text or number; a number that is no name is an index.

    Classes named 1, 2, 10 are meant by their names whether a client sends 2 or "2". Raises InputError if unknown.
    """
    text = str(label)
    if text in names:
        return names.index(text)
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < len(names):
        return int(text)
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise InputError(f"unknown class {label!r}; choose one of {', '.join(names[:20])}{more}", field="label")


@dataclass(frozen=True)
class DataSpec:
    """The facts of a dataset that networks and settings depend on. `columns` counts rows by split and column.

    `twins`: row n of the validation columns a and b show the same thing, so a translation can be scored.
    `ages`: evenly spaced quantiles of the ages of the training images. `identities`: number of identities in them.
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
        """Numbers per image, C * H * W."""
        return self.channels * self.height * self.width

    @property
    def count(self) -> int:
        """Number of training images: rows of the longest training column."""
        return max(self.columns.get("train", {}).values(), default=0)

    def class_index(self, label: str | int) -> int:
        """`class_index` among the classes of the data. Raises InputError if there are none."""
        if not self.classes:
            raise InputError(f"unknown class {label!r}: this model has no classes", field="label")
        return class_index(self.classes, label)
