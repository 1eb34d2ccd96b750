"""What a report is: a model looked at over a whole dataset, as a generator of progress that returns findings.

A report is one class in a file of this folder. Like a training it is stopped by leaving the loop; what it wants to
keep for a later attempt it yields as `kept`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from models.data import Columns
from models.evaluation.dataset_view import check_shape
from models.family import Family
from models.types import DataError, DataSpec, Fitted


class Params(BaseModel):
    """Parameters of a report: the `params` of its request."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Curve:
    """A plot: one x axis, named series of y, and for some of them an interval (low, high) at each x."""

    title: str
    x_label: str
    y_label: str
    x: list[float]
    series: dict[str, list[float]]
    intervals: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    log_x: bool = False


@dataclass(frozen=True)
class Findings:
    """What a report found: facts for JSON, tables of rows, plots, sheets of images (n, c, h, w), and sentences."""

    facts: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fitted: Fitted | None = None
    """For the operation that uses what this report fitted."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work; `kept`, plain JSON, is what a later attempt of the same report starts from."""

    done: int
    total: int
    kept: Any = None


@dataclass(frozen=True)
class Subject:
    """What a report looks at. `data` describes the dataset reported on. `home` is the validation split of the one the
    model learned from, `learned` its training split; None when it is gone."""

    model: Family
    data: DataSpec
    train: Columns
    validation: Columns
    home: Columns | None
    seed: int
    learned: Columns | None = None
    load: Callable[[str], Family] | None = None
    """Another model of this tenant, by name or name@digest."""
    others: Mapping[str, Family] = field(default_factory=dict)
    """Further models, that the parameter `others` names."""
    perturbations: Mapping[str, Tensor] = field(default_factory=dict)
    """Universal perturbations (C, H, W), that the parameter `perturbations` names."""


Run = Generator[Progress, None, Findings]


class Report(ABC):
    """One kind of report."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    """Deprecated names, which clients and stored jobs may still use."""
    summary: ClassVar[str]
    needs: ClassVar[tuple[type, ...]]
    """Capabilities, all of which the model must have."""
    columns: ClassVar[tuple[str, ...]] = ("images",)
    """Columns the dataset must have."""
    Params: ClassVar[type[Params]] = Params
    price: ClassVar[dict[str, str] | None] = None
    """Maximum forward and backward passes, as expressions over the params (evaluated in app/core/catalog/cost.py)."""
    settings: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings, other than its defaults, with which it runs an attack that its params only name; "" for all others."""
    passes_on: ClassVar[tuple[str, ...]] = ()
    """Params that are settings of those attacks, unless they are empty."""

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        """Whether models of `family` can be reported on."""
        return all(issubclass(family, capability) for capability in cls.needs)

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        """Raises DataError when the dataset cannot be reported on with this model."""
        for column in cls.columns:
            if column not in data.columns.get("validation", {}):
                raise DataError(f"the report {cls.name} needs the column {column}, which this dataset lacks", "dataset")
        check_shape(model, data)

    @abstractmethod
    def run(self, subject: Subject, params: Params, kept: Any = None) -> Run:
        """Do the work, yielding Progress, and return the Findings. `kept` is the last that an earlier attempt gave."""
