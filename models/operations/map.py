"""A map of a dataset in latent space: the position of each image on a plane, and the plane decoded."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models import deadline
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

MAX_EMBEDDED = 2000
MARGIN = 0.05  # of the range of the codes, on each side


class MapParams(DatasetParams, LabelParams):
    """Which images are shown, and at which resolution."""

    split: Split = Field("all", description="Split of the images.")
    images: int = Field(1000, ge=1, le=5000, description="Maximum number of images on the map, evenly spaced.")
    atlas: int = Field(
        12, ge=0, le=32, description="Resolution of the decoded grid: atlas x atlas pictures (0 = none)."
    )
    thumbnail: int = Field(28, ge=8, le=64, description="Longest side of a thumbnail in pixels.")
    embedding: Literal["none", "tsne", "umap"] = Field(
        "none",
        description="A second map of the same codes, which cannot be decoded: t-SNE or UMAP, for up to "
        f"{MAX_EMBEDDED} images. umap needs workers installed with anamorph[umap].",
    )
    latents: bool = Field(False, description="Also return the whole code of each image.")


class Map(Operation):
    """x and y are the code itself if it has two numbers, else its position on the principal plane of the codes.

    The map is invertible: centre + x * axes[0] + y * axes[1] is a code that can be decoded.
    """

    name = "map"
    summary = "Maps the images of a dataset to a plane of latent space, and decodes the plane."
    needs = (Encodes, Decodes)
    takes = "nothing"
    gives = "pictured"
    method = "GET"
    multiplies = ()
    dataset = True
    price = {"forwards": "max(atlas, 1) ** 2 + min(dataset, images)", "backwards": "0"}
    Params = MapParams

    def rows(self, model: Family, inputs: Tensor | None, params: MapParams) -> Rows:
        selection = self.view.select(params.split, params.images)
        if params.embedding != "none":
            embedding.check(params.embedding, len(selection), MAX_EMBEDDED)
        codes = self.view.codes(selection)
        plane = Plane.through(codes)
        x, y = (ticks(column, max(1, params.atlas)) for column in plane.place(codes).T)
        points = torch.cartesian_prod(y.flip(0), x).flip(1)  # row by row from the top, where y is largest
        latents = model.project_to_code_space(plane.lift(points))
        return {"inputs": latents, **self._labels(model, selection, codes, latents, params)}

    def batch_key(self, params: MapParams) -> tuple:
        return ()

    def compute(self, model: Family, rows: Rows, params: MapParams) -> Rows:
        return {"images": decode(model, rows["inputs"], rows)}

    def result(self, model: Family, rows: Rows, outputs: Rows, params: MapParams) -> Result:
        selection = self.view.select(params.split, params.images)
        codes, images = self.view.codes(selection), self.view.images(selection.positions)
        plane = Plane.through(codes)
        places = plane.place(codes)
        items = [
            item | {"x": x, "y": y}
            for item, (x, y) in zip(self.view.describe(selection.positions), places.tolist(), strict=True)
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
            embedded = self.view.cache(key, 0, lambda: embed(params.embedding, codes))
            facts["embedding"] = embedded_map(params.embedding, embedded, images, labels)
        sheets = {"sprites": tiled(thumbnails(images, params.thumbnail))}
        if params.atlas:
            x, y = (ticks(column, params.atlas) for column in places.T)
            facts |= {"atlas_x": x.tolist(), "atlas_y": y.flip(0).tolist()}
            sheets["atlas"] = Sheet(outputs["images"], params.atlas)
        return Result(latents=codes if params.latents else None, facts=facts, sheets=sheets)

    def _labels(self, model: Family, selection: Selection, codes: Tensor, latents: Tensor, params: MapParams) -> Rows:
        """Labels for a conditional model: the requested one, else that of the nearest image."""
        if not takes_labels(model) or params.label is not None:
            return label_rows(model, params.label, len(latents))
        labels = self.view.labels(selection.positions)
        if labels is None or self.view.data.classes != model.data.classes:
            raise InputError("This model is conditional, and the dataset lacks its classes: send a label.", "label")
        return {"labels": labels[nearest(latents, codes)[1][:, 0]]}


def embed(method: str, codes: Tensor) -> Tensor:
    """Takes seconds, and neither the model nor its device."""
    with deadline.paused():
        return embedding.embed(method, codes)


def ticks(column: Tensor, count: int) -> Tensor:
    """(count,) evenly spaced values from the minimum to the maximum of `column` with a margin (1 if they are equal)."""
    low, high = column.min(), column.max()
    margin = MARGIN * (high - low) if high > low else 1.0
    return (
        torch.linspace(0, 1, count) * (high - low + 2 * margin) + low - margin if count > 1 else (low + high)[None] / 2
    )


def tiled(images: Tensor) -> Sheet:
    """A sheet that is as square as possible."""
    return Sheet(images, max(1, round(len(images) ** 0.5)))


def embedded_map(method: str, places: Tensor, images: Tensor, labels: Tensor | None) -> dict:
    """A map by t-SNE or UMAP, whose distances between clusters have no meaning and which cannot be decoded."""
    return {
        "method": method,
        "for_looking_only": True,
        "invertible": False,
        "points": places.tolist(),
        "quality": embedding.map_quality(images.flatten(1), places, labels),
    }
