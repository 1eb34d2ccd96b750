"""Face ageing: shows a face in another age group."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Ages, Conditional, Decodes
from models.families.face_ageing.identity import identity_distance
from models.families.face_ageing.latent_search import RATE, STEPS, decode_at_ages, find_latents
from models.family import Family
from models.operations.core.base import ImageParams, Operation, Result, Rows
from models.types import InputError

UNKNOWN = -1
"""Age group of an image that was not sent: the model classifies it."""


class AgeParams(ImageParams):
    """Send `to` or `all`. `latents=z0` needs no search and is fastest."""

    to: str | None = Field(
        None,
        max_length=64,
        description="Target age group by name, for example 60+ (in a URL 60%2B), or an age in years.",
    )
    all: bool = Field(False, description="Show all age groups side by side, instead of one.")
    latents: Literal["z0", "pixel", "identity"] = Field(
        "identity",
        description="How the latents of the face are found: z0 is the encoder's output; pixel and identity optimise "
        "it, "
        "for equal pixels or for the same identity.",
    )
    label: str | None = Field(
        None, max_length=64, description="Age group of the image. Default: the model's prediction."
    )
    steps: int = Field(
        STEPS, ge=1, le=1000, description="Optimisation steps for the latents; more steps are more exact and slower."
    )


class Age(Operation):
    """Reports, for each picture, the identity distance (0 = same person, 1 = stranger) and its predicted age group.

    With `all`, the picture is a row of all age groups; each group is also a picture of its own.
    """

    name = "age"
    summary = "Shows a face at another age."
    needs = (Ages, Conditional, Decodes)
    gradients = True
    price = {
        "forwards": "inputs * (4 + 3 * (1 + all * (groups - 1))"
        " + (steps + 1) * (latents_pixel + 2 * latents_identity))",
        "backwards": "inputs * steps * (latents_pixel + 2 * latents_identity)",
    }
    Params = AgeParams

    def rows(self, model: Family, inputs: Tensor | None, params: AgeParams) -> Rows:
        if params.all and params.to is not None:
            raise InputError("to and all cannot be combined.", field="all", remedy="Send one of them.")
        if not params.all and params.to is None:
            groups = ", ".join(model.age_groups)
            raise InputError("Required: to or all.", field="to", remedy=f"Send to, one of {groups}, or all=true.")
        source = UNKNOWN if params.label is None else self._group(model, params.label, "label")
        every = torch.arange(len(model.age_groups))
        targets = every if params.all else torch.tensor([self._group(model, params.to, "to")])
        count = len(inputs)
        return {"inputs": inputs, "sources": torch.full((count,), source), "targets": targets.expand(count, -1)}

    def batch_key(self, params: AgeParams) -> tuple:
        return params.latents, params.steps, params.all

    def compute(self, model: Family, rows: Rows, params: AgeParams) -> Rows:
        images, targets = rows["inputs"], rows["targets"]
        with torch.no_grad():
            predicted = model.age_logits(images).argmax(1)
        sources = torch.where(rows["sources"] == UNKNOWN, predicted, rows["sources"])
        latents = find_latents(model, images, sources, params.latents, (params.steps, RATE))
        with torch.no_grad():
            faces = decode_at_ages(model, latents, targets)
            person, flat = model.identity_features(images), faces.flatten(0, 1)
            distances = identity_distance(person.repeat_interleave(targets.shape[1], 0), model.identity_features(flat))
            ages = model.age_logits(flat).softmax(1).max(1)
        per_face = {"distances": distances, "probabilities": ages.values, "predicted": ages.indices}
        unfolded = {name: column.unflatten(0, targets.shape) for name, column in per_face.items()}
        return {"faces": faces, "latents": latents, "sources": sources, **unfolded}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: AgeParams) -> Result:
        names, faces = list(model.age_groups), outputs["faces"]
        columns = (rows["targets"], outputs["distances"], outputs["predicted"], outputs["probabilities"])
        items = []
        for source, *lists in zip(outputs["sources"].tolist(), *(column.tolist() for column in columns), strict=True):
            ages = [
                {"to": names[to], "index": to, "identity_distance": distance, "read": names[read], "probability": p}
                for to, distance, read, p in zip(*lists, strict=True)
            ]
            items.append({"from": names[source], **({"ages": ages} if params.all else ages[0])})
        facts = {"latents_by": params.latents, "items": items}
        if not params.all:
            return Result(images=faces[:, 0], latents=outputs["latents"], facts=facts)
        row = faces.permute(0, 2, 3, 1, 4).flatten(3)  # (B, C, H, K * W)
        pictures = {f"age-{group}": faces[:, group] for group in range(faces.shape[1])}
        return Result(images=row, latents=outputs["latents"], facts=facts, pictures=pictures)

    def _group(self, model: Family, name: str, field: str) -> int:
        try:
            return model.age_group(name)
        except InputError as error:
            raise InputError(error.detail, field=field, remedy=error.remedy) from None
