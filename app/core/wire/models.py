"""Models, their versions, and the card of an imported model."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links, Request

Numbers = float | Annotated[list[float], Field(min_length=1, max_length=4)]
Side = Annotated[int, Field(strict=True, ge=1, le=8192)]


class Version(BaseModel):
    digest: str
    created_at: datetime
    bytes: int
    metrics: dict[str, Any]
    job: str | None = None


class Measurement(BaseModel):
    """The measurement of a model, which runs after its training has ended."""

    status: Literal["measuring", "measured", "failed", "canceled", "none"]
    job: str | None = Field(None, description="The job that measures the model.")


class Model(BaseModel):
    """A model in the requested version; a bare name means the newest."""

    name: str
    ready: bool
    reason: str | None = Field(None, description="Why the model is not ready: it is being made, or its files are lost.")
    digest: str | None = None
    family: str | None = None
    dataset: str | None = None
    seed: int | None = None
    config: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    measurement: Measurement | None = Field(
        None, description="Whether the metrics have arrived; null for a model that came with its metrics."
    )
    capabilities: list[str] = []
    operations: dict[str, str] = Field({}, description="The supported operations and their paths.")
    created_at: datetime | None = None
    bytes: int | None = None
    links: Links


class ModelDetail(Model):
    card: dict[str, Any] = {}
    versions: list[Version] = []


class ImportedCard(Request):
    """Facts of an imported model that its file does not have."""

    labels: list[Annotated[str, Field(min_length=1, max_length=200)]] | None = Field(
        None, min_length=1, max_length=100_000
    )
    mean: Numbers | None = Field(
        None, description="Mean of the pixels in [0, 1], one for all channels or one each.", examples=[0.5]
    )
    std: Numbers | None = Field(
        None, description="Standard deviation, likewise: input = (pixels - mean) / std.", examples=[0.5]
    )
    height: Side | None = None
    width: Side | None = None
    channels: Annotated[int, Field(strict=True, ge=1, le=4)] | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    output: Literal["logits", "softmax"] | None = None
    task: Literal["classifier", "segmenter", "estimator"] | None = None
    white_box: bool | None = Field(None, description="true: refuse a file without gradients.")
    licence: str | None = Field(None, max_length=200)
    attribution: str | None = Field(None, max_length=1000)
