"""The base of operations: rows in, rows out, each row computed from itself alone, with typed parameters.

An operation is one class in a file of models/operations. The host (workers/inference/host.py) runs `compute` on
batches of one fixed shape that mix the rows of many requests, on the model's device; `rows` and `result` see one
request, on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from torch import Tensor

from models.capabilities import finite_rows
from models.evaluation.dataset_view import DatasetView
from models.family import Family
from models.types import InputError, ReportArtefact

Rows = dict[str, Tensor]
"""Tensors with one common leading dimension: row i of each belongs to the same image."""

PLANE = {"type": "string", "contentEncoding": "base64", "minLength": 1, "maxLength": 2_000_000}
Plane = Annotated[Any, WithJsonSchema({"anyOf": [PLANE, {"type": "null"}]})]
"""A parameter with one number per pixel: base64 of a PNG over HTTP, uint8 (H, W) here. See `Params.planes`."""


class Params(BaseModel):
    """Parameters of an operation: query parameters or JSON fields of its endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    planes: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that are a Plane; the worker decodes them."""


class ImageParams(Params):
    """Parameters of an operation on images."""

    resize: bool = Field(
        False, description="Scale and crop images of another size to the model's size, instead of refusing them."
    )


class DatasetParams(Params):
    """Parameters of an operation that reads a dataset."""

    dataset: str | None = Field(
        None,
        max_length=160,
        description="Name of an imported dataset with the model's image size. Default: the one the model was trained "
        "on.",
    )


@dataclass(frozen=True)
class Result:
    """The answer to one request: images (N, C, H, W) in [0, 1], latents (N, D), and facts for JSON.

    Images (N, H, W) of dtype uint8 are class indices. `facts["items"]` holds one dict per row. `pictures` are further
    images by name, such as a perturbation, encoded like `images`. `sheets` are single pictures by name.
    """

    images: Tensor | None = None
    latents: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    sheets: dict[str, "Sheet"] = field(default_factory=dict)
    columns: int | None = None
    """Images per row of a contact sheet; None: as many as make it square."""


@dataclass(frozen=True)
class Sheet:
    """Tiles (K, C, h, w) side by side in one picture, without gaps, row by row."""

    tiles: Tensor
    columns: int

    @property
    def layout(self) -> dict[str, int]:
        """For clients: tile number i begins at x = i % columns * width, y = i // columns * height."""
        return {"columns": self.columns, "width": self.tiles.shape[3], "height": self.tiles.shape[2]}


class Operation(ABC):
    """One thing that a model can be asked to compute. A subclass with a `name` is served at `/v1/models/{m}/{name}`."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    """Deprecated names, which clients may still use."""
    summary: ClassVar[str]
    needs: ClassVar[tuple[type | tuple[type, ...], ...]]
    """Capabilities that a family must have; of those in an inner tuple, one."""
    takes: ClassVar[Literal["images", "latents", "either", "nothing"]] = "images"
    """Input of a request; `either`: latents, or images if the model encodes them."""
    gives: ClassVar[Literal["images", "latents", "facts", "pictured"]] = "images"
    """Content of the answer; `pictured`: facts with pictures and sheets."""
    method: ClassVar[Literal["GET", "POST"]] = "POST"
    sheet: ClassVar[bool] = False
    """Several images are answered as one contact sheet by default, not as a zip."""
    any_size: ClassVar[bool] = False
    """Images keep their own size; `rows` cuts them into tiles of the model's size (models/nn/tiling.py)."""
    json_first: ClassVar[bool] = False
    """Answers with JSON by default, even where the answer has images."""
    multiplies: ClassVar[tuple[str, ...]] = ("n",)
    """Parameters whose value, or whose list's length, multiplies the number of images in the answer."""
    picture_param: ClassVar[str | None] = None
    """A parameter that, when set, makes the operation answer with images instead of facts."""
    gradients: ClassVar[bool] = False
    """`compute` differentiates with respect to its input."""
    dataset: ClassVar[bool] = False
    """Reads a dataset: `Params` is a DatasetParams, and `rows` and `result` may use `view`."""
    report: ClassVar[str | None] = None
    """Uses what a report of this kind fitted: `Params.report` names its job; `rows` and `result` may use `fitted`."""
    checks_finite: ClassVar[bool] = True
    """Outputs that are not finite are an error of the request; False: `result` handles them."""
    one_row_per_batch: ClassVar[bool] = False
    """`compute` runs the model many times per row, in batches of its own: it is given one row at a time."""
    price: ClassVar[dict[str, str]] = {"forwards": "inputs", "backwards": "0"}
    """Maximum passes of images or latents through a network of the model for one request: two expressions that
    app/core/catalog/cost.py evaluates, which names the values they may use. Drawing latents is no pass."""
    Params: ClassVar[type[Params]] = Params

    view: DatasetView
    fitted: ReportArtefact

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        """Whether models of `family` support this operation."""
        return all(issubclass(family, capability) for capability in cls.needs)

    def derivative(self, model: Family, params: Params, count: int) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
        """The function that `compute` differentiates and `count` inputs to try it on; None: no trial is possible.

        The host tries at load which batch sizes give the same bits (workers/inference/batching.py).
        """
        return None

    def rows(self, model: Family, inputs: Tensor | None, params: Params) -> Rows:
        """The rows of one request. `inputs`: images (N, C, H, W), latents (N, D), or None. Raises InputError."""
        return {"inputs": inputs}

    def batch_key(self, params: Params) -> tuple:
        """Requests with equal keys may share a batch: every parameter that `compute` reads is in it."""
        return (params.model_dump_json(),)

    @abstractmethod
    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        """The output of each row, from that row alone. `params` are those of any request of the batch."""

    def answer(self, model: Family, rows: Rows, outputs: Rows, params: Params) -> Result:
        """The answer to one request, from its rows and `outputs`, which `compute` returned for them.

        Raises InputError, with the number of rows, if outputs are not finite: no answer is made from them.
        """
        numbers = [tensor for tensor in outputs.values() if self.checks_finite and tensor.is_floating_point()]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
            finite = torch.stack([finite_rows(tensor) for tensor in numbers]).all(0)
            first = int((~finite).nonzero()[0])
            raise InputError(
                f"The model's output is not finite for {int((~finite).sum())} of {len(finite)} inputs; the first is "
                f"number {first}.",
                field="model",
                remedy="Leave these inputs out. If it happens often: lower the learning_rate and train again; for an "
                "imported model, check mean and std in its card.",
            )
        return self.result(model, rows, outputs, params)

    @abstractmethod
    def result(self, model: Family, rows: Rows, outputs: Rows, params: Params) -> Result:
        """What `answer` returns, from finite outputs unless `checks_finite` is False."""
