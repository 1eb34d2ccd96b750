"""A face at another age."""

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

UNREAD = -1
"""An age that was not given: the model reads it."""


class AgeParams(ImageParams):
    """`to` or `all`. Fewer steps are faster; z0 takes none."""

    to: str | None = Field(
        None, max_length=64, description="Age group by name, 60+ for example (in an address 60%2B), or an age in years."
    )
    all: bool = Field(False, description="All age groups side by side, in place of one.")
    latents: Literal["z0", "pixel", "identity"] = Field(
        "identity",
        description="How the face is found: z0 is the encoder's guess; pixel and identity search on from there, for "
        "equal pixels or for the same person.",
    )
    label: str | None = Field(
        None, max_length=64, description="Age group that the image shows. Empty: as the model reads it."
    )
    steps: int = Field(STEPS, ge=1, le=1000, description="Steps of the search; more come nearer and take longer.")


class Age(Operation):
    """Beside each picture: how far its identity is from the face's (0 the same, 1 a stranger), and the age read in it.

    With `all` the picture is the row of all ages, and each of them comes as a picture of its own as well.
    """

    name = "age"
    summary = "Shows a face at another age."
    needs = (Ages, Conditional, Decodes)
    gradients = True
    Params = AgeParams

    def rows(self, model: Family, inputs: Tensor | None, params: AgeParams) -> Rows:
        if params.all and params.to is not None:
            raise InputError("to and all exclude each other", field="all", remedy="give one of them")
        if not params.all and params.to is None:
            groups = ", ".join(self._names(model))
            raise InputError("the age is missing", field="to", remedy=f"give to, one of {groups}, or all=true")
        shown = UNREAD if params.label is None else self._group(model, params.label, "label")
        wanted = self._every(model) if params.all else torch.tensor([self._group(model, params.to, "to")])
        count = len(inputs)
        return {"inputs": inputs, "shown": torch.full((count,), shown), "wanted": wanted.expand(count, -1)}

    def batch_key(self, params: AgeParams) -> tuple:
        return params.latents, params.steps, params.all

    def compute(self, model: Family, rows: Rows, params: AgeParams) -> Rows:
        images, wanted = rows["inputs"], rows["wanted"]
        with torch.no_grad():
            read = model.age_logits(images).argmax(1)
        shown = torch.where(rows["shown"] == UNREAD, read, rows["shown"])
        latents = find_latents(model, images, shown, params.latents, (params.steps, RATE))
        with torch.no_grad():
            faces = decode_at_ages(model, latents, wanted)
            person, flat = model.identity_features(images), faces.flatten(0, 1)
            apart = identity_distance(person.repeat_interleave(wanted.shape[1], 0), model.identity_features(flat))
            ages = model.age_logits(flat).softmax(1).max(1)
        per_face = {"apart": apart, "sure": ages.values, "read": ages.indices}
        unfolded = {name: column.unflatten(0, wanted.shape) for name, column in per_face.items()}
        return {"faces": faces, "latents": latents, "shown": shown, **unfolded}

    def result(self, model: Family, rows: Rows, found: Rows, params: AgeParams) -> Result:
        names, faces = self._names(model), found["faces"]
        columns = (rows["wanted"], found["apart"], found["read"], found["sure"])
        items = []
        for shown, *lists in zip(found["shown"].tolist(), *(column.tolist() for column in columns), strict=True):
            ages = [
                {"to": names[to], "index": to, "identity_distance": apart, "read": names[read], "probability": sure}
                for to, apart, read, sure in zip(*lists, strict=True)
            ]
            items.append({"from": names[shown], **({"ages": ages} if params.all else ages[0])})
        facts = {"latents_by": params.latents, "items": items}
        if not params.all:
            return Result(images=faces[:, 0], latents=found["latents"], facts=facts)
        row = faces.permute(0, 2, 3, 1, 4).flatten(3)  # (b, c, h, k * w)
        pictures = {f"age-{group}": faces[:, group] for group in range(faces.shape[1])}
        return Result(images=row, latents=found["latents"], facts=facts, pictures=pictures)

    def _every(self, model: Family) -> Tensor:
        return torch.arange(len(self._names(model)))

    def _names(self, model: Family) -> list[str]:
        return list(model.age_groups)

    def _group(self, model: Family, given: str, field: str) -> int:
        try:
            return model.age_group(given)
        except InputError as error:
            raise InputError(error.detail, field=field, remedy=error.remedy) from None
