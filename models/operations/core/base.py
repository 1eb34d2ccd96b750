"""What an operation is: rows in, rows out, one row independent of the next, with typed parameters.

An operation is one class in a file of models/operations. The host (workers/inference/host.py) runs `compute` on
batches of one fixed shape that mix the rows of many requests, on the model's device; `rows` and `result` see one
request, on the CPU.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from torch import Tensor

from models.evaluation.dataset_view import DatasetView
from models.family import Family
from models.types import Fitted

Rows = dict[str, Tensor]
"""Tensors with one common leading dimension: row i of all of them belongs together."""


PLANE = {"type": "string", "contentEncoding": "base64", "minLength": 1, "maxLength": 2_000_000}
Plane = Annotated[Any, WithJsonSchema({"anyOf": [PLANE, {"type": "null"}]})]
"""A parameter with one number for each pixel: base64 of a PNG to a client, uint8 (H, W) here. See Params.planes."""


class Params(BaseModel):
    """Parameters of an operation: query parameters of its endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    planes: ClassVar[tuple[str, ...]] = ()
    """Parameters that are a Plane; the worker decodes them."""


class ImageParams(Params):
    """Parameters of an operation on images."""

    resize: bool = Field(False, description="Scale and crop images of another size to the model's, not refuse them.")


class DatasetParams(Params):
    """Parameters of an operation that looks at a dataset."""

    dataset: str | None = Field(
        None,
        max_length=160,
        description="Name of an imported dataset of the model's image size; empty: the one the model learned from.",
    )


@dataclass(frozen=True)
class Result:
    """The answer to one request: images (n, c, h, w) and latents (n, d), with facts for JSON.

    Images (n, h, w) of dtype uint8 are class indices. `facts["items"]` holds one dict per row where there is something
    to say of each. `pictures` are further images by name, such as the perturbation of an attack, to be encoded like
    `images`. `sheets` are pictures by name that belong to the answer as a whole.
    """

    images: Tensor | None = None
    latents: Tensor | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    sheets: dict[str, "Sheet"] = field(default_factory=dict)
    columns: int | None = None
    """Images in a row of a contact sheet; None: as many as make it square."""


@dataclass(frozen=True)
class Sheet:
    """Tiles (k, c, h, w) side by side in one picture, without gaps, row by row."""

    tiles: Tensor
    columns: int

    @property
    def layout(self) -> dict[str, int]:
        """How a client finds a tile: number i begins at x = i % columns * width, y = i // columns * height."""
        return {"columns": self.columns, "width": self.tiles.shape[3], "height": self.tiles.shape[2]}


class Operation(ABC):
    """One thing a model can be asked to do."""

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    """Deprecated names, which clients may still use."""
    summary: ClassVar[str]
    needs: ClassVar[tuple[type | tuple[type, ...], ...]]
    """Capabilities, all of which a family must have; of those in a tuple, one."""
    takes: ClassVar[Literal["images", "latents", "either", "nothing"]] = "images"
    """What a request brings; `either`: latents, or images of a model that encodes them."""
    gives: ClassVar[Literal["images", "latents", "facts", "pictured"]] = "images"
    """What the answer is; `pictured`: facts, with pictures and sheets beside them."""
    method: ClassVar[Literal["GET", "POST"]] = "POST"
    sheet: ClassVar[bool] = False
    """Several images are answered as one contact sheet by default, not as a zip."""
    any_size: ClassVar[bool] = False
    """Images come at the size they have, not at the model's; `rows` cuts them into tiles (models/nn/tiling.py)."""
    facts_first: ClassVar[bool] = False
    """What was found out weighs more than the picture: JSON by default."""
    counts: ClassVar[tuple[str, ...]] = ("n",)
    """Parameters that multiply the images of the answer, by their value or the length of their list."""
    shows: ClassVar[str | None] = None
    """A parameter that turns facts into pictures: with it, the operation gives images."""
    gradients: ClassVar[bool] = False
    """`compute` differentiates with respect to its input."""
    dataset: ClassVar[bool] = False
    """Looks at a dataset: `Params` is a DatasetParams, and `view` is there for `rows` and `result`."""
    report: ClassVar[str | None] = None
    """Uses what a report of this kind fitted: `Params` names its job in `report`, and `fitted` is there likewise."""
    alone: ClassVar[bool] = False
    """`compute` asks the model very often about each row, in batches of its own: it is given one row at a time."""
    Params: ClassVar[type[Params]] = Params

    view: DatasetView
    fitted: Fitted

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        """Whether models of `family` can do this."""
        return all(issubclass(family, capability) for capability in cls.needs)

    def derivative(self, model: Family, params: Params, count: int) -> tuple[Callable[[Tensor], Tensor], Tensor] | None:
        """What `compute` differentiates, and `count` rows to try that on; None when no trial could speak for it."""
        return None

    def rows(self, model: Family, inputs: Tensor | None, params: Params) -> Rows:
        """The rows of one request. `inputs` are its images (n, c, h, w), its latents (n, d), or None."""
        return {"inputs": inputs}

    def agreement(self, params: Params) -> tuple:
        """What requests must have in common to share a batch: every parameter that `compute` looks at."""
        return (params.model_dump_json(),)

    @abstractmethod
    def compute(self, model: Family, rows: Rows, params: Params) -> Rows:
        """The answer for each row, from that row alone. `params` are those of any request of the batch."""

    @abstractmethod
    def result(self, model: Family, rows: Rows, found: Rows, params: Params) -> Result:
        """The answer to one request, from its rows and what `compute` found for them."""
