"""A job as clients see it: progress, curves, snapshots and what its doctor found."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links


class Progress(BaseModel):
    images: int = 0
    total: int | None = None
    eta_seconds: float | None = None


class Alarm(BaseModel):
    """Something wrong with a training, as its doctor saw it."""

    name: str = Field(description="What is wrong, in one stable word.", examples=["overfitting"])
    cause: str
    remedy: str
    evidence: dict[str, float] = Field({}, description="The numbers behind the cause.")
    images: int = Field(description="Images shown when it was raised.")
    cleared: int | None = Field(None, description="Images shown when it had gone; null while it stands.")
    treated: str | None = Field(None, description="What the training did about it by itself (`auto_remedy`).")


class Job(BaseModel):
    """Durable work. `attempt` grows each time a worker takes it up."""

    id: str
    kind: str = Field(examples=["training"])
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    progress: Progress
    queue_position: int | None = Field(None, description="1 for the job that starts next; null when it does not wait.")
    attempt: int
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    metrics: dict[str, float | None] = Field({}, description="The latest point of the curves.")
    alarms: list[Alarm] = Field([], description="What the doctor found wrong with a training, oldest first.")
    error: dict[str, Any] | None = Field(None, description="The problem that ended it.")
    result: dict[str, Any] | None = None
    request: dict[str, Any] = Field(description="What was asked for, completed.")
    links: Links


class Point(BaseModel):
    images: int
    values: dict[str, float | None]


class Curves(BaseModel):
    data: list[Point]
    next_since: int | None = Field(None, description="What to ask next for newer points only.")


class Snapshot(BaseModel):
    images: int
    url: str
    metrics: dict[str, float | None] = Field({}, description="The curves at this point.")
    checkpoint: bool = Field(False, description="Whether `fork_from` can start here.")


class Snapshots(BaseModel):
    data: list[Snapshot]
    checkpoints: list[int] = Field([], description="Counts of images from which `fork_from` can start.")
