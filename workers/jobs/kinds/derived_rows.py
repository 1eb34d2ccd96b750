"""The outputs of a model for the images of a dataset, as rows of a new one, such as refined images to train on."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from app.core.errors import InvalidDataset
from app.core.settings import settings
from models.operations.core.base import Params
from models.types import DataSpec
from workers import codecs, devices
from workers.data.boxes import as_boxes
from workers.data.importing import Origin
from workers.data.rows import IMAGE_COLUMNS, VALUE_TYPES, Row
from workers.data.stored import Columns, OpenDataset
from workers.inference.batching import LoadedModel, compute
from workers.inference.host import Host
from workers.inference.tensors import operation_for, read_params
from workers.jobs.job import RunningJob
from workers.store import model_rows
from workers.store.training_data import open_source

BATCH = 64
COPIED = (*VALUE_TYPES, "masks")
"""Columns copied from the source dataset."""


def open_derived(job: RunningJob) -> tuple["DerivedSource", Origin]:
    """The rows of the job's spec, and the origin of the new dataset."""
    spec = job.spec
    devices.use_threads(settings().train_threads)
    digest = model_rows.digest(job, spec["model"])
    source = open_source(job.bind, job.tenant, spec["dataset"], tick=job.stop_if_asked)
    loaded = Host(settings().resident_bytes, devices.device()).models.get(digest)
    rows = DerivedSource(source.data, loaded, spec["operation"], spec["params"], spec.get("column"))
    return rows, Origin(f"derived:{spec['dataset']}", source.licence, source.attribution)


class DerivedSource:
    """Like ZipSource. Keeps splits, labels and masks; of one side of a pair or domain, its images and any labels."""

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
        """Raises InvalidDataset for a missing column and for images that the model does not take."""
        present = [name for name in self.data.train if name in IMAGE_COLUMNS]
        if self.column not in present:
            raise InvalidDataset(
                f"The dataset has no image column {self.column!r}.",
                field="column",
                remedy=f"Choose one of: {', '.join(present)}.",
            )
        data, target = DataSpec.from_facts(self.data.facts), self.loaded.model.data
        if data.channels != target.channels or (data.shape != target.shape and not self.operation.any_size):
            shapes = ("x".join(map(str, spec.shape)) for spec in (target, data))
            raise InvalidDataset(
                "The model takes images of {} (channels, height, width); the dataset has {}.".format(*shapes),
                field="dataset",
                remedy=f"Import it with image_size={target.height}x{target.width}&channels={target.channels}.",
            )

    def rows(self) -> Iterator[Row]:
        for split, side in (("train", self.data.train), ("validation", self.data.validation)):
            for start in range(0, len(side.get(self.column, ())), BATCH):
                yield from self._rows(split, side, start)

    def _rows(self, split: str, side: Columns, start: int) -> Iterator[Row]:
        images = np.array(side[self.column][start : start + BATCH])
        names = {name: name for name in COPIED} if self.column == "images" else {f"{self.column}_labels": "labels"}
        copied = {new: side[name][start : start + BATCH] for name, new in names.items() if name in side}
        boxes = as_boxes(side["boxes"][start : start + BATCH]) if self.layout == "detection" else None
        for index, image in enumerate(self._outputs(images)):
            values = {name: column[index].item() for name, column in copied.items() if name != "masks"}
            mask = np.array(copied["masks"][index]) if "masks" in copied else None
            yield Row(f"{split}[{start + index}]", {"images": image}, mask, values, split, boxes=boxes and boxes[index])

    def _outputs(self, images: np.ndarray) -> np.ndarray:
        """uint8 (n, c, h, w) to uint8 (n, c, h, w): the same bytes as the answer of a call."""
        rows = self.operation.rows(self.loaded.model, codecs.to_tensor(images), self.params)
        with torch.no_grad():
            (outputs,) = compute(self.loaded, self.operation, self.params, [rows])
        results = self.operation.answer(self.loaded.model, rows, outputs, self.params).images
        if results is None or results.ndim != 4:
            raise InvalidDataset(
                f"{self.operation.name} does not turn images into images.",
                field="operation",
                remedy="Use an operation such as denoise, reconstruct or translate.",
            )
        if len(results) != len(images):
            raise InvalidDataset(
                f"With these params, {self.operation.name} gives {len(results)} images for {len(images)}.",
                field="params",
                remedy="Choose parameters that give one image for each.",
            )
        return codecs.to_uint8(results)

    def close(self) -> None:
        pass


def default_column(data: OpenDataset) -> str:
    return next(name for name in IMAGE_COLUMNS if name in data.train)
