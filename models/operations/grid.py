"""A plane of latent space as a sheet of pictures: how images change along the two directions that matter most."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, HasPrior, takes_labels
from models.family import Family
from models.nn.plane import Plane
from models.operations.core.base import Operation, Result, Rows
from models.operations.core.latents import LabelParams, decode, label_rows
from models.operations.samples import sample_rows
from models.types import InputError

DRAWN = 512
MAX_IMAGES = 1024


class GridParams(LabelParams):
    """The upper left picture has the smallest quantile of the first axis and the largest of the second."""

    rows: int = Field(12, ge=1, le=64, description="Pictures from top to bottom.")
    columns: int = Field(12, ge=1, le=64, description="Pictures from left to right.")
    tail: float = Field(
        0.05, gt=0, lt=0.5, description="The outermost pictures stand at this quantile of a Gaussian and at its mirror."
    )


class Grid(Operation):
    """Codes of two numbers are shown whole, at even quantiles of a Gaussian; longer ones on their principal plane.

    The plane is that of the training codes where the model knows them, else of codes drawn from the prior.
    """

    name = "grid"
    summary = "Decodes a plane of latent space, evenly by quantiles, as one sheet of pictures."
    needs = (HasPrior, Decodes)
    takes = "nothing"
    method = "GET"
    sheet = True
    multiplies = ("rows", "columns")
    Params = GridParams

    def rows(self, model: Family, inputs: Tensor | None, params: GridParams) -> Rows:
        total = params.rows * params.columns
        if total > MAX_IMAGES:
            raise InputError(
                f"{params.rows} rows of {params.columns} make {total} images; {MAX_IMAGES} are allowed", "rows"
            )
        labels = label_rows(model, params.label, total, cycle=params.label is None)
        if params.label is None and labels:
            labels = {"labels": labels["labels"][:1].expand(total).clone()}  # one class throughout, or nothing compares
        plane = model.plane() or drawn_plane(model, labels)
        plane = Plane(plane.centre.cpu(), plane.axes.cpu(), plane.spread.cpu())
        across, down = quantiles(params.columns, params.tail), quantiles(params.rows, params.tail).flip(0)
        points = torch.stack([across.repeat(params.rows), down.repeat_interleave(params.columns)], 1)
        return {"inputs": model.project_to_code_space(plane.lift(points * plane.spread)), "points": points, **labels}

    def batch_key(self, params: GridParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: GridParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, found: Rows, params: GridParams) -> Result:
        items = [{"x": x, "y": y} for x, y in rows["points"].tolist()]
        if "labels" in rows:
            items = [a | b for a, b in zip(items, model.describe_labels(rows["labels"]), strict=True)]
        return Result(
            images=found["images"], latents=rows["inputs"], facts={"items": items}, columns=params.columns
        )  # fmt: skip


def quantiles(count: int, tail: float) -> Tensor:
    """(count,) standard normal quantiles, evenly spaced in probability from `tail` to 1 - `tail`; 0 for one."""
    shares = torch.linspace(tail, 1 - tail, count, dtype=torch.float64) if count > 1 else torch.tensor([0.5])
    return torch.special.ndtri(shares).float()


@torch.no_grad()
def drawn_plane(model: Family, labels: Rows) -> Plane:
    """The principal plane of codes from the prior."""
    rows = {name: column.to(model.device) for name, column in sample_rows(model, 0, DRAWN).items()}
    condition = [labels["labels"][:1].expand(DRAWN).to(model.device)] if takes_labels(model) else []
    return Plane.through(model.draw(rows["noise"], rows["uniform"], *condition).cpu())
