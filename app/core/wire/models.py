"""Trained models and their versions."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.core.wire.terms import Links


class Version(BaseModel):
    digest: str
    created_at: datetime
    bytes: int
    metrics: dict[str, Any]
    job: str | None = None


class Model(BaseModel):
    """A trained model, in the version that was asked for; a name means its newest."""

    name: str
    ready: bool
    digest: str | None = None
    family: str | None = None
    dataset: str | None = None
    seed: int | None = None
    config: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    capabilities: list[str] = []
    operations: dict[str, str] = Field({}, description="What it can do, with the path of each.")
    created_at: datetime | None = None
    bytes: int | None = None
    links: Links


class ModelDetail(Model):
    card: dict[str, Any] = {}
    versions: list[Version] = []
