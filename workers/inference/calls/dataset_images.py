"""Looking into datasets: calls that need no model."""

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from workers import codecs
from workers.data import images_page
from workers.inference.model_cache import ModelCache
from workers.inference.requests import read_params


class DatasetImages(BaseModel):
    """Which rows of which dataset (by digest)."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(pattern="[0-9a-f]{64}")
    split: Literal["train", "validation"] = "train"
    column: str | None = None
    start: int = Field(0, ge=0)
    count: int = Field(100, ge=1, le=256)


def dataset_images(call: dict[str, Any], models: ModelCache | None = None) -> dict[str, Any]:
    """An answer with the rows as PNGs, or one contact sheet of them, and `labels` among its facts if there are any."""
    asked = read_params(DatasetImages, call["params"])
    images, labels = images_page(asked.dataset, asked.split, asked.column, asked.start, asked.count)
    facts = {} if labels is None else {"labels": labels}
    if call.get("grid") and images:
        images = [codecs.grid_png(np.stack([codecs.decode(image) for image in images]))]
    return {"images": images, "latents": None, "facts": facts, "extra": {}, "sheets": {}, "timings": {}}
