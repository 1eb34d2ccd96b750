"""The contract of a report: a measurement of one model over a dataset, run as a job.

A report is one class in a file of `models/reports/`; docs/extend/report.md has an example. `run` is a generator: it
yields Progress and returns a ReportResult. The caller stops a report by leaving the loop, and resumes it from the last
`progress_state` that it yielded.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from models.capabilities import finite_rows
from models.data import Columns
from models.evaluation.dataset_view import check_shape
from models.family import Family
from models.types import DataError, DataSpec, ReportArtefact


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
class ReportResult:
    """Facts for JSON, tables of rows, plots, pictures as batches of images (n, c, h, w), and notes in sentences."""

    facts: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: list[Curve] = field(default_factory=list)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    fitted: ReportArtefact | None = None
    """ReportArtefact tensors, stored for an operation that uses this report."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of work. `progress_state`, plain JSON, is what a resumed run starts from."""

    done: int
    total: int
    progress_state: Any = None


@dataclass(frozen=True)
class Subject:
    """The model and the dataset of a report. `data` describes the dataset, of which `train` and `validation` are the
    splits. `model_validation` and `model_train` are the splits the model was trained on; None if they were deleted."""

    model: Family
    data: DataSpec
    train: Columns
    validation: Columns
    model_validation: Columns | None
    seed: int
    model_train: Columns | None = None
    load: Callable[[str], Family] | None = None
    """Loads another model of this tenant, by name or name@digest."""
    others: Mapping[str, Family] = field(default_factory=dict)
    """The models that the parameter `others` names, by name."""
    perturbations: Mapping[str, Tensor] = field(default_factory=dict)
    """The universal perturbations (C, H, W) that the parameter `perturbations` names, by name."""


Run = Generator[Progress, None, ReportResult]


def require_finite(rows: Tensor, what: str) -> Tensor:
    """The rows (N, ...) themselves. Raises DataError with their number if some are not finite."""
    finite = finite_rows(rows)
    if not bool(finite.all()):
        raise DataError(f"{what} is not finite for {int((~finite).sum())} of {len(rows)} images", "model")
    return rows


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
    """By name of an attack: the settings, other than its defaults, with which the report runs it when the params only
    name it; "" is for all other attacks."""
    forwards_params: ClassVar[tuple[str, ...]] = ()
    """Names of params that are passed to those attacks as settings, unless they are None."""

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        """Whether models of `family` have the capabilities the report needs."""
        return all(issubclass(family, capability) for capability in cls.needs)

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        """Raises DataError when the dataset lacks a column or its images are of another shape than the model's."""
        for column in cls.columns:
            if column not in data.columns.get("validation", {}):
                raise DataError(
                    f"the report {cls.name} needs the column {column!r}, which this dataset lacks",
                    "dataset",
                    f"use a dataset with {' and '.join(cls.columns)}",
                )
        check_shape(model, data)

    @abstractmethod
    def run(self, subject: Subject, params: Params, progress_state: Any = None) -> Run:
        """Does the work, yields Progress and returns the ReportResult.

        `progress_state` is the last that an interrupted run yielded, or None at the start.
        """
