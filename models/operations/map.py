"""A dataset on a plane of code space, for a page to draw: where its images lie, and what the plane decodes to."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.capabilities import Decodes, Encodes, takes_labels
from models.evaluation import embedding
from models.evaluation.dataset_view import Selection, Split
from models.evaluation.metrics import nearest
from models.family import Family
from models.nn.plane import Plane
from models.operations.core.base import DatasetParams, Operation, Result, Rows, Sheet
from models.operations.core.latents import LabelParams, decode, label_rows
from models.operations.core.nearest import thumbnails
from models.types import InputError

EMBEDDABLE = 2000
MARGIN = 0.05


class MapParams(DatasetParams, LabelParams):
    """What is shown, and how finely."""

    split: Split = Field("all", description="Images of which side.")
    images: int = Field(1000, ge=1, le=5000, description="Images on the map, evenly spaced through the dataset.")
    atlas: int = Field(12, ge=0, le=32, description="Places a side at which the plane is decoded; 0: nowhere.")
    thumbnail: int = Field(28, ge=8, le=64, description="Longest side of a thumbnail, in pixels.")
    embedding: Literal["none", "tsne", "umap"] = Field(
        "none",
        description=f"A second set of places, to look at only: it cannot be decoded. Up to {EMBEDDABLE} images. umap "
        "is there where the workers were installed with anamorph[umap]; its first map of a process takes seconds more.",
    )
    latents: bool = Field(False, description="Give the whole code of each image too.")


class Map(Operation):
    """x and y are the code itself where it has two numbers, else its place on the principal plane of the codes.

    centre + x * axes[0] + y * axes[1] is a code to decode: the map can be read backwards.
    """

    name = "map"
    summary = "Places the images of a dataset on a plane of code space, and decodes the plane."
    needs = (Encodes, Decodes)
    takes = "nothing"
    gives = "pictured"
    method = "GET"
    multiplies = ()
    dataset = True
    Params = MapParams

    def rows(self, model: Family, inputs: Tensor | None, params: MapParams) -> Rows:
        selection = self.view.select(params.split, params.images)
        if params.embedding != "none":
            embedding.check(params.embedding, len(selection), EMBEDDABLE)
        codes = self.view.codes(selection)
        plane = Plane.through(codes)
        x, y = (ticks(column, max(1, params.atlas)) for column in plane.place(codes).T)
        points = torch.cartesian_prod(y.flip(0), x).flip(1)  # row by row from the top, where y is greatest
        latents = model.project_to_code_space(plane.lift(points))
        return {"inputs": latents, **self._labels(model, selection, codes, latents, params)}

    def batch_key(self, params: MapParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: MapParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, found: Rows, params: MapParams) -> Result:
        selection = self.view.select(params.split, params.images)
        codes, images = self.view.codes(selection), self.view.images(selection.positions)
        plane = Plane.through(codes)
        places = plane.place(codes)
        items = [
            where | {"x": x, "y": y}
            for where, (x, y) in zip(self.view.describe(selection.positions), places.tolist(), strict=True)
        ]
        labels = self.view.labels(selection.positions)
        facts = {
            "dataset": self.view.name,
            "method": "code" if codes.shape[1] <= 2 else "pca",
            "explained": plane.explained,
            "centre": plane.centre.tolist(),
            "axes": plane.axes.tolist(),
            "quality": embedding.quality(images.flatten(1), codes, places, labels),
            "items": items,
        }
        if params.embedding != "none":
            key = f"{params.embedding}-{params.split}-{len(selection)}"
            embedded = self.view.cache(key, 0, lambda: embedding.embed(params.embedding, codes))
            facts["embedding"] = looked_at(params.embedding, embedded, images, labels)
        sheets = {"sprites": tiled(thumbnails(images, params.thumbnail))}
        if params.atlas:
            x, y = (ticks(column, params.atlas) for column in places.T)
            facts |= {"atlas_x": x.tolist(), "atlas_y": y.flip(0).tolist()}
            sheets["atlas"] = Sheet(found["images"], params.atlas)
        return Result(latents=codes if params.latents else None, facts=facts, sheets=sheets)

    def _labels(self, model: Family, selection: Selection, codes: Tensor, latents: Tensor, params: MapParams) -> Rows:
        """For a conditional model the label asked for, else that of the nearest image."""
        if not takes_labels(model) or params.label is not None:
            return label_rows(model, params.label, len(latents))
        known = self.view.labels(selection.positions)
        if known is None or self.view.data.classes != model.data.classes:
            raise InputError("this model decodes for a class, and the dataset has no such labels", "label")
        return {"labels": known[nearest(latents, codes)[1][:, 0]]}


def ticks(column: Tensor, count: int) -> Tensor:
    """(count,) even steps from the least to the greatest value, with a margin; around one value, steps of its own."""
    low, high = column.min(), column.max()
    room = MARGIN * (high - low) if high > low else 1.0
    return torch.linspace(0, 1, count) * (high - low + 2 * room) + low - room if count > 1 else (low + high)[None] / 2


def tiled(images: Tensor) -> Sheet:
    """As square as it can be."""
    return Sheet(images, max(1, round(len(images) ** 0.5)))


def looked_at(method: str, places: Tensor, images: Tensor, labels: Tensor | None) -> dict:
    """Places by t-SNE or UMAP: distances between groups mean nothing there, and no place can be decoded."""
    return {
        "method": method,
        "for_looking_only": True,
        "invertible": False,
        "points": places.tolist(),
        "quality": embedding.map_quality(images.flatten(1), places, labels),
    }
