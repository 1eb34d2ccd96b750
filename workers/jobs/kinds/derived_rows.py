"""What a model makes of the images of a dataset, as rows of a new one: a refined set trains a classifier."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from app.core.errors import InvalidDataset
from app.core.settings import settings
from app.core.store.database import reading
from models.operations.core.base import Params
from models.types import DataSpec
from workers import codecs, devices
from workers.data.boxes import as_boxes
from workers.data.importing import Origin
from workers.data.rows import IMAGE_COLUMNS, VALUE_TYPES, Row
from workers.data.stored import Columns, OpenDataset
from workers.inference.batching import LoadedModel, compute
from workers.inference.host import Host
from workers.inference.requests import operation_for, read_params
from workers.jobs.job import RunningJob
from workers.store import model_rows as records
from workers.store.training_data import open_source

BATCH = 64
BESIDE = (*VALUE_TYPES, "masks")
"""Columns that stay true of an image when a model has changed how it looks."""


def open_derived(job: RunningJob) -> tuple["DerivedSource", Origin]:
    """The rows that the job's spec asks for, and whose work they rest on."""
    spec = job.spec
    devices.use_threads(settings().train_threads)
    with reading(job.bind) as conn:
        digest = records.digest_of(conn, job.tenant, spec["model"])
    given = open_source(job.bind, job.tenant, spec["dataset"], tick=job.stop_if_asked)
    loaded = Host(settings().resident_bytes, devices.device()).models.get(digest)
    source = DerivedSource(given.data, loaded, spec["operation"], spec["params"], spec.get("column"))
    return source, Origin(f"derived:{spec['dataset']}", given.licence, given.attribution)


class DerivedSource:
    """Like ZipSource. Splits, labels and masks are kept; from a pair or a domain its images, and its labels if any."""

    twins = False

    def __init__(
        self, data: OpenDataset, loaded: LoadedModel, operation: str, params: dict[str, Any], column: str | None
    ):
        self.data, self.loaded, self.column = data, loaded, column or default_column(data)
        self.operation = operation_for(loaded, operation)
        self.params: Params = read_params(self.operation.Params, params)
        self.check()
        whole = self.column == "images"
        labelled = f"{self.column}_labels" in data.train
        self.layout = data.facts["layout"] if whole else "labelled" if labelled else "plain"
        self.classes = data.facts.get("classes") if whole or labelled else None
        self.total = sum(len(side[self.column]) for side in (data.train, data.validation) if self.column in side)

    def check(self) -> None:
        """Raises InvalidDataset for a column that is not there and for images the model does not read."""
        present = [name for name in self.data.train if name in IMAGE_COLUMNS]
        if self.column not in present:
            raise InvalidDataset(
                f"The dataset has no images in a column {self.column}.",
                field="column",
                remedy=f"It has {', '.join(present)}.",
            )
        given, wanted = DataSpec.from_facts(self.data.facts), self.loaded.model.data
        if given.channels != wanted.channels or (given.shape != wanted.shape and not self.operation.any_size):
            shapes = ("x".join(map(str, spec.shape)) for spec in (given, wanted))
            raise InvalidDataset(
                "The dataset's images are {} (channels, height, width), the model's {}.".format(*shapes),
                field="dataset",
                remedy=f"Import it with image_size={wanted.height}x{wanted.width}&channels={wanted.channels}.",
            )

    def rows(self) -> Iterator[Row]:
        for split, side in (("train", self.data.train), ("validation", self.data.validation)):
            for start in range(0, len(side.get(self.column, ())), BATCH):
                yield from self._rows(split, side, start)

    def _rows(self, split: str, side: Columns, start: int) -> Iterator[Row]:
        images = np.array(side[self.column][start : start + BATCH])
        names = {name: name for name in BESIDE} if self.column == "images" else {f"{self.column}_labels": "labels"}
        beside = {kept: side[name][start : start + BATCH] for name, kept in names.items() if name in side}
        boxes = as_boxes(side["boxes"][start : start + BATCH]) if self.layout == "detection" else None
        for index, image in enumerate(self._made(images)):
            values = {name: column[index].item() for name, column in beside.items() if name != "masks"}
            mask = np.array(beside["masks"][index]) if "masks" in beside else None
            yield Row(f"{split}[{start + index}]", {"images": image}, mask, values, split, boxes=boxes and boxes[index])

    def _made(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, c, h, w) twice: what the model makes of them, in the bytes a call would answer."""
        rows = self.operation.rows(self.loaded.model, codecs.to_tensor(images), self.params)
        with torch.no_grad():
            (found,) = compute(self.loaded, self.operation, self.params, [rows])
        made = self.operation.result(self.loaded.model, rows, found, self.params).images
        if made is None or made.ndim != 4:
            raise InvalidDataset(f"{self.operation.name} makes no images of images.", field="operation")
        if len(made) != len(images):
            raise InvalidDataset("The operation makes several images of one with these parameters.", field="params")
        return codecs.to_uint8(made)

    def close(self) -> None:
        pass


def default_column(data: OpenDataset) -> str:
    return next(name for name in IMAGE_COLUMNS if name in data.train)
