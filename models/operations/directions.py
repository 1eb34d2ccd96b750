"""Attribute directions in latent space: from the mean code of one class to that of another."""

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from models.capabilities import Decodes, Encodes
from models.evaluation.dataset_view import DatasetView, Split
from models.family import Family
from models.operations.core.base import DatasetParams, ImageParams, Operation, Result, Rows
from models.operations.core.latents import LabelParams, decode, fitting_latents, label_rows
from models.types import InputError

MAX_IMAGES = 10_000  # whose codes make a mean


class DirectionsParams(DatasetParams, LabelParams, ImageParams):
    """The two classes, and how far to go."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    origin: int | str = Field(alias="from", description="Class at which the direction starts, by name or index.")
    goal: int | str = Field(alias="to", description="Class at which the direction ends, by name or index.")
    alphas: list[float] = Field(
        [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0],
        min_length=1,
        max_length=64,
        description="Multiples of the direction, one picture each: 0 changes nothing, 1 is the distance between the "
        "means.",
    )
    split: Split = Field("train", description="Images whose codes are averaged.")


class Directions(Operation):
    """decode(z + alpha * (mean_to - mean_from)): one row of pictures for each image or code.

    The means are of the codes of a labelled dataset, by default the one the model was trained on.
    """

    name = "directions"
    summary = "Moves images or codes along the direction from one class to another, and decodes each step."
    needs = (Encodes, Decodes)
    takes = "either"
    sheet = True
    multiplies = ("alphas",)
    dataset = True
    price = {"forwards": "inputs * count_alphas * (2 + Conditional) + min(dataset, 10000)", "backwards": "0"}
    Params = DirectionsParams

    def rows(self, model: Family, inputs: Tensor, params: DirectionsParams) -> Rows:
        start = inputs if inputs.ndim == 4 else fitting_latents(model, inputs)
        direction = class_mean(self.view, params.goal, "to", params.split)
        direction = direction - class_mean(self.view, params.origin, "from", params.split)
        shifts = torch.tensor(params.alphas)[:, None] * direction
        total = len(inputs) * len(shifts)
        return {
            "inputs": start.repeat_interleave(len(shifts), 0),
            "shifts": shifts.repeat(len(inputs), 1),
            **self._labels(model, inputs, params, total),
        }

    def batch_key(self, params: DirectionsParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: DirectionsParams) -> Rows:
        codes = model.encode(rows["inputs"]) if rows["inputs"].ndim == 4 else rows["inputs"]
        if getattr(model, "infers_labels", False) and "labels" not in rows:
            rows = rows | {"labels": model.infer_labels(rows["inputs"])}
        latents = model.project_to_code_space(codes + rows["shifts"])
        return {"images": decode(model, latents, rows), "latents": latents}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: DirectionsParams) -> Result:
        count = len(params.alphas)
        items = [{"input": row // count, "alpha": params.alphas[row % count]} for row in range(len(outputs["images"]))]
        facts = {"dataset": self.view.name, "from": params.origin, "to": params.goal, "items": items}
        return Result(images=outputs["images"], latents=outputs["latents"], facts=facts, columns=count)

    def _labels(self, model: Family, inputs: Tensor, params: DirectionsParams, total: int) -> Rows:
        """Labels to decode for; none if the model infers them from the images."""
        if params.label is None and inputs.ndim == 4 and getattr(model, "infers_labels", False):
            return {}
        return label_rows(model, params.label, total)


def class_mean(view: DatasetView, label: int | str, field: str, split: Split) -> Tensor:
    """(latent_dim,): the mean code of a class. Raises InputError naming `field`."""
    selection = view.select(split, MAX_IMAGES)
    labels = view.labels(selection.positions)
    if labels is None:
        raise InputError(f"The dataset {view.name} has no labels.", "dataset", "Use a dataset with classes.")
    try:
        index = view.data.class_index(label)
    except InputError as error:
        raise InputError(error.detail, field) from None
    members = view.codes(selection)[labels == index]
    if not len(members):
        raise InputError(f"The {split} images of {view.name} have none of class {label}.", field, "Use split=all.")
    return members.mean(0)
