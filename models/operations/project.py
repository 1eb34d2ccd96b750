"""An image back into latent space: the code whose picture comes nearest, found by descent through the decoder."""

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
    """Each step is one pass through the decoder and back."""

    steps: int = Field(200, ge=1, le=1000, description="Steps of Adam; more come nearer and take longer.")
    learning_rate: float = Field(0.1, gt=0, le=1, description="Greatest step size, in units of the prior's spread.")


class Project(Operation):
    """The search starts at the encoder's code where there is an encoder, else at the best of 64 samples.

    Without a label, a conditional model keeps the label of the sample it starts from.
    """

    name = "project"
    summary = "Finds the latents whose picture comes nearest to each image."
    needs = (HasPrior, Decodes)
    gradients = True
    Params = ProjectParams

    def derivative(self, model: Family, params: ProjectParams, count: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        label = [model.example_labels(1).to(model.device)] if takes_labels(model) else []
        through = lambda latents: model.decode(latents, *(one.expand(len(latents)) for one in label))  # noqa: E731
        return through, torch.randn(count, model.latent_dim)

    def rows(self, model: Family, inputs: Tensor | None, params: ProjectParams) -> Rows:
        asked = label_rows(model, params.label, len(inputs)) if params.label is not None else {}
        return {"inputs": inputs, **asked}

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
            made = decode(model, best, labels)
        squares = (made - images).square().flatten(1).mean(1)
        return {"images": made, "latents": best, "squares": squares, "starts": start["starts"], **labels}

    def result(self, model: Family, rows: Rows, found: Rows, params: ProjectParams) -> Result:
        labels = model.describe_labels(found["labels"]) if "labels" in found else [{}] * len(found["squares"])
        items = [
            {"distance": math.sqrt(mse), "psnr": -10 * math.log10(max(mse, 1e-10)), "start": STARTS[start], **label}
            for mse, start, label in zip(found["squares"].tolist(), found["starts"].tolist(), labels, strict=True)
        ]
        return Result(images=found["images"], latents=found["latents"], facts={"items": items})


@torch.no_grad()
def starting_points(model: Family, rows: Rows) -> Rows:
    """For each row the `latents` to start from, which of STARTS that is, and the label kept while searching."""
    images = rows["inputs"]
    if isinstance(model, Encodes):
        found = {"latents": model.encode(images), "starts": torch.full((len(images),), 2, device=images.device)}
        if getattr(model, "infers_labels", False):
            found["labels"] = rows["labels"] if "labels" in rows else model.infer_labels(images)
        return found
    candidates = {name: column.to(images.device) for name, column in sample_rows(model, 0, CANDIDATES).items()}
    labels = {}
    if takes_labels(model):
        labels = {"labels": model.example_labels(CANDIDATES).to(images.device)}
    latents = model.draw(candidates["noise"], candidates["uniform"], *labels.values())
    if isinstance(model, StyleBased):
        latents = torch.cat([model.truncate(latents[:1], torch.zeros(1, 1, device=latents.device)), latents[1:]])
    made = decode(model, latents, labels)
    errors = [distance(made, image.expand_as(made)) for image in images]
    chosen = torch.stack([error.argmin() for error in errors])
    found = {"latents": latents[chosen], "starts": (isinstance(model, StyleBased) & (chosen == 0)).long()}
    if labels:
        found["labels"] = rows.get("labels", labels["labels"][chosen])
    return found
