"""Datasets and their images."""

from datetime import datetime

from pydantic import BaseModel, Field

from app.core.wire.terms import Layout, Links


class Dataset(BaseModel):
    """A dataset. A built-in one is imported when it is first used."""

    name: str
    title: str | None = None
    layout: Layout
    height: int
    width: int
    channels: int
    count: int
    classes: list[str] | None = None
    columns: dict[str, dict[str, int]] | None = Field(
        None, description="Number of rows by split and column; null before the import."
    )
    digest: str | None = None
    builtin: bool
    installed: bool = Field(description="Whether the data are on this machine: imported, or in an installed package.")
    sizes: list[int] | None = Field(
        None, description="Smallest and largest image_size of a built-in dataset; null: it has one size."
    )
    twins: bool = Field(False, description="Whether row n of the validation columns a and b shows the same object.")
    imported: bool
    licence: str | None = None
    attribution: str | None = None
    bytes: int | None = None
    created_at: datetime | None = None
    links: Links


class DatasetImage(BaseModel):
    image: str = Field(description="Base64 of a PNG.")
    label: str | None = None
    index: int | None = Field(None, description="Index of the class.")


class DatasetImages(BaseModel):
    data: list[DatasetImage]
    split: str
    start: int
    total: int
