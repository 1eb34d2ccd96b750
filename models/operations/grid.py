"""A plane of latent space, decoded on a grid of quantiles."""

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, HasPrior, takes_labels
from models.family import Family
from models.nn.plane import Plane
from models.operations.core.base import Operation, Result, Rows
from models.operations.core.latents import decode, label_rows
from models.operations.samples import SamplerParams, check_sampler, sample_rows
from models.types import InputError

PRIOR_CODES = 512
MAX_IMAGES = 1024


class GridParams(SamplerParams):
    """The upper left picture is at the smallest quantile of the first axis and the largest of the second."""

    rows: int = Field(12, ge=1, le=64, description="Number of pictures from top to bottom.")
    columns: int = Field(12, ge=1, le=64, description="Number of pictures from left to right.")
    tail: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Quantile of the standard normal at which the outermost pictures lie: from tail to 1 - tail.",
    )


class Grid(Operation):
    """Two-dimensional latent spaces are shown whole; of others, the principal plane.

    The plane is that of the training codes if the model stores it, else that of codes drawn from the prior.
    """

    name = "grid"
    summary = "Decodes a plane of latent space, on a grid of quantiles, as one contact sheet."
    needs = (HasPrior, Decodes)
    takes = "nothing"
    method = "GET"
    sheet = True
    multiplies = ("rows", "columns")
    price = {"forwards": "rows * columns", "backwards": "0"}
    Params = GridParams

    def rows(self, model: Family, inputs: Tensor | None, params: GridParams) -> Rows:
        total = params.rows * params.columns
        if total > MAX_IMAGES:
            raise InputError(
                f"rows * columns must be at most {MAX_IMAGES}; you sent {params.rows} * {params.columns} = {total}.",
                "rows",
            )
        labels = label_rows(model, params.label, total, cycle=params.label is None)
        if params.label is None and labels:
            labels = {
                "labels": labels["labels"][:1].expand(total).clone()
            }  # one class throughout, so that only the code varies
        check_sampler(model, params.sampler)
        plane = model.plane(params.sampler) or prior_plane(model, labels)
        plane = Plane(plane.centre.cpu(), plane.axes.cpu(), plane.spread.cpu())
        across, down = quantiles(params.columns, params.tail), quantiles(params.rows, params.tail).flip(0)
        points = torch.stack([across.repeat(params.rows), down.repeat_interleave(params.columns)], 1)
        return {"inputs": model.project_to_code_space(plane.lift(points * plane.spread)), "points": points, **labels}

    def batch_key(self, params: GridParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: GridParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: GridParams) -> Result:
        items = [{"x": x, "y": y} for x, y in rows["points"].tolist()]
        if "labels" in rows:
            items = [a | b for a, b in zip(items, model.describe_labels(rows["labels"]), strict=True)]
        return Result(
            images=outputs["images"], latents=rows["inputs"], facts={"items": items}, columns=params.columns
        )  # fmt: skip


def quantiles(count: int, tail: float) -> Tensor:
    """(count,) standard normal quantiles, evenly spaced in probability from `tail` to 1 - `tail`; 0 for one."""
    levels = torch.linspace(tail, 1 - tail, count, dtype=torch.float64) if count > 1 else torch.tensor([0.5])
    return torch.special.ndtri(levels).float()


@torch.no_grad()
def prior_plane(model: Family, labels: Rows) -> Plane:
    """The principal plane of codes drawn from the prior."""
    rows = {name: column.to(model.device) for name, column in sample_rows(model, 0, PRIOR_CODES).items()}
    condition = [labels["labels"][:1].expand(PRIOR_CODES).to(model.device)] if takes_labels(model) else []
    return Plane.through(model.draw(rows["noise"], rows["uniform"], *condition).cpu())
