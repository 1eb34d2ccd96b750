"""Jobs: progress, metrics, snapshots and alarms."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links


class Progress(BaseModel):
    images: int = 0
    total: int | None = None
    eta_seconds: float | None = Field(None, description="Seconds until the last update; null until it can be told.")


class Alarm(BaseModel):
    """A problem of a training that its monitor detected."""

    name: str = Field(description="Stable name of the problem.", examples=["overfitting"])
    cause: str
    remedy: str
    evidence: dict[str, float] = Field({}, description="The measured values behind the cause.")
    images: int = Field(description="Images shown when the alarm was raised.")
    cleared: int | None = Field(None, description="Images shown when it was cleared; null while it lasts.")
    treated: str | None = Field(None, description="What the training changed by itself (`auto_remedy`).")


Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Forecast(BaseModel):
    """What a training will take on an idle machine like this one; pairs are low and high."""

    effort: str = Field(examples=["lesson"])
    images: int
    updates: int
    device: str = Field(examples=["cpu"])
    seconds: Interval = Field(description="From the start of the job to the last update.")
    parts: dict[str, Interval] = Field(
        description="Seconds of `start` and `updates`; and of `measuring`, which follows and is no part of `seconds`."
    )
    memory_bytes: Interval = Field(description="Memory of the process, without the dataset.")
    trainings: int = Field(
        description="Finished trainings of this kind that the seconds follow from; 0: the speed of the machine."
    )


class Job(BaseModel):
    """A durable job. `attempt` counts how often a worker has started it."""

    id: str
    kind: str = Field(examples=["training"])
    status: Literal["queued", "running", "succeeded", "failed", "canceled"]
    progress: Progress
    queue_position: int | None = Field(
        None, description="1 for the job that starts next; null for a job that is not queued."
    )
    attempt: int
    cancel_requested: bool = False
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    metrics: dict[str, float | None] = Field({}, description="Latest values of the metrics.")
    alarms: list[Alarm] = Field([], description="Alarms of a training, the oldest first.")
    error: dict[str, Any] | None = Field(None, description="The problem with which the job failed.")
    result: dict[str, Any] | None = None
    request: dict[str, Any] = Field(description="The complete request.")
    links: Links


class AcceptedTraining(Job):
    """A training that was accepted, with its forecast: null if no inference worker answered or knows its speed yet."""

    forecast: Forecast | None = None


class Point(BaseModel):
    images: int
    values: dict[str, float | None]


class Curves(BaseModel):
    data: list[Point]
    next_since: int | None = Field(None, description="Value of `since` for newer points.")


class Snapshot(BaseModel):
    images: int
    url: str
    metrics: dict[str, float | None] = Field({}, description="The metrics at this point.")
    checkpoint: bool = Field(False, description="Whether `fork_from` can start here.")


class Snapshots(BaseModel):
    data: list[Snapshot]
    checkpoints: list[int] = Field([], description="Numbers of images at which `fork_from` can start.")
