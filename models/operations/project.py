"""GAN inversion: the latents whose decoded image is nearest to a given one, found by gradient descent."""

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes, HasPrior, StyleBased, takes_labels
from models.evaluation.latent_search import PULL, descend, distance
from models.family import Family
from models.operations.core.base import Operation, Result, Rows
from models.operations.core.latents import LabelParams, decode, label_rows
from models.operations.samples import sample_rows

CANDIDATES = 64
STARTS = ("sample", "typical", "encoder")


class ProjectParams(LabelParams):
    """Each step is one forward and one backward pass through the decoder."""

    steps: int = Field(200, ge=1, le=1000, description="Number of Adam steps; more steps are more exact and slower.")
    learning_rate: float = Field(0.1, gt=0, le=1, description="Largest step size, in standard deviations of the prior.")


class Project(Operation):
    """The search starts at the encoder's output if the model encodes, else at the best of 64 samples.

    Without a label, a conditional model keeps the label of the starting point.
    """

    name = "project"
    summary = "Finds the latents whose decoded image is nearest to each image."
    needs = (HasPrior, Decodes)
    gradients = True
    price = {
        "forwards": "inputs * (steps + 2 + (1 + Conditional) * Encodes + 64 * (1 - Encodes))",
        "backwards": "inputs * steps",
    }
    Params = ProjectParams

    def derivative(self, model: Family, params: ProjectParams, count: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        label = [model.example_labels(1).to(model.device)] if takes_labels(model) else []
        decode_all = lambda latents: model.decode(latents, *(one.expand(len(latents)) for one in label))  # noqa: E731
        return decode_all, torch.randn(count, model.latent_dim)

    def rows(self, model: Family, inputs: Tensor | None, params: ProjectParams) -> Rows:
        labels = label_rows(model, params.label, len(inputs)) if params.label is not None else {}
        return {"inputs": inputs, **labels}

    def compute(self, model: Family, rows: Rows, params: ProjectParams) -> Rows:
        images = rows["inputs"]
        start = starting_points(model, rows)
        labels = {"labels": start["labels"]} if "labels" in start else {}
        free = not isinstance(model, Encodes | StyleBased)
        best = descend(
            start["latents"],
            lambda latents: distance(decode(model, latents, labels), images),
            (params.steps, params.learning_rate),
            PULL if free else 0.0,
        )
        with torch.no_grad():
            decoded = decode(model, best, labels)
        squares = (decoded - images).square().flatten(1).mean(1)
        return {"images": decoded, "latents": best, "squares": squares, "starts": start["starts"], **labels}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: ProjectParams) -> Result:
        labels = model.describe_labels(outputs["labels"]) if "labels" in outputs else [{}] * len(outputs["squares"])
        items = [
            {"distance": math.sqrt(mse), "psnr": -10 * math.log10(max(mse, 1e-10)), "start": STARTS[start], **label}
            for mse, start, label in zip(outputs["squares"].tolist(), outputs["starts"].tolist(), labels, strict=True)
        ]
        return Result(images=outputs["images"], latents=outputs["latents"], facts={"items": items})


@torch.no_grad()
def starting_points(model: Family, rows: Rows) -> Rows:
    """For each row the `latents` to start from, `starts` (an index into STARTS), and the label to decode for."""
    images = rows["inputs"]
    if isinstance(model, Encodes):
        points = {"latents": model.encode(images), "starts": torch.full((len(images),), 2, device=images.device)}
        if getattr(model, "infers_labels", False):
            points["labels"] = rows["labels"] if "labels" in rows else model.infer_labels(images)
        return points
    candidates = {name: column.to(images.device) for name, column in sample_rows(model, 0, CANDIDATES).items()}
    labels = {}
    if takes_labels(model):
        labels = {"labels": model.example_labels(CANDIDATES).to(images.device)}
    latents = model.draw(candidates["noise"], candidates["uniform"], *labels.values())
    if isinstance(model, StyleBased):
        latents = torch.cat([model.truncate(latents[:1], torch.zeros(1, 1, device=latents.device)), latents[1:]])
    decoded = decode(model, latents, labels)
    errors = [distance(decoded, image.expand_as(decoded)) for image in images]
    best = torch.stack([error.argmin() for error in errors])
    points = {"latents": latents[best], "starts": (isinstance(model, StyleBased) & (best == 0)).long()}
    if labels:
        points["labels"] = rows.get("labels", labels["labels"][best])
    return points
