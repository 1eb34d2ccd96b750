"""What travels over HTTP as JSON: requests (unknown fields are refused) and responses."""

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.core.keys import SCOPES
from app.core.names import NAME, REFERENCE

T = TypeVar("T")
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$", examples=["digits"])]
ModelReference = Annotated[str, Field(pattern=f"^{REFERENCE.pattern}$", examples=["demo-vae", "demo-vae@0123abcd"])]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Links = dict[str, str]
Layout = Literal["plain", "labelled", "paired", "unpaired", "segmentation", "attributes", "detection"]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Fork(Request):
    """A checkpoint of a training: its last, or one of those that GET /v1/jobs/{id}/snapshots lists."""

    job: str = Field(max_length=36, description="Id of the training.")
    images: int | None = Field(None, strict=True, ge=0, lt=2**63, description="Images it had been shown; empty: last.")


class TrainingRequest(Request):
    """What to train on what. An empty config trains well: its defaults come from the data.

    A fork inherits family, dataset, seed and settings that it does not give.
    """

    family: str | None = Field(
        None,
        max_length=64,
        description="Kind of model; see /v1/families. Only a fork can leave it out.",
        examples=["vae"],
    )
    dataset: Name | None = Field(
        None,
        description="Name of a dataset; built-in ones are imported on the way. Only a fork can leave it out.",
        examples=["mnist5k"],
    )
    config: dict[str, Any] = Field({}, description="Settings of the family, by its schema.", examples=[{"epochs": 5}])
    name: Name | None = Field(None, description="Name of the model; by default FAMILY-DATASET.", examples=["my-vae"])
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same model.")
    init_from: ModelReference | None = Field(None, description="A model whose weights to start from.")
    fork_from: Annotated[
        Fork | None,
        BeforeValidator(lambda given: {"job": given} if isinstance(given, str) else given, str | Fork | None),
    ] = Field(None, description="A training to go on from, with other settings: its job, or one point of it.")


class ReportRequest(Request):
    """What to find out about which model on what data."""

    report: str = Field(
        "robustness", max_length=64, description="Kind of report; see GET /v1/reports.", examples=["cluster"]
    )
    model: ModelReference = Field(description="The model; the report names the exact version.")
    dataset: Name = Field(description="Name of a dataset; built-in ones are imported on the way.", examples=["mnist5k"])
    params: dict[str, Any] = Field({}, description="Settings of the report, by its schema.")
    attacks: list[str | dict[str, Any]] | None = Field(
        None,
        max_length=16,
        description="Short for params.attacks.",
        examples=[["fgsm", {"method": "pgd", "steps": 100}]],
    )
    eps: list[float | str] | None = Field(
        None, max_length=64, description="Short for params.eps.", examples=[["4/255", "8/255"]]
    )
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same report.")


class DerivedRequest(Request):
    """Which images a model is to work on, and the name of the dataset that its work becomes."""

    name: Name = Field(description="Name of the new dataset.", examples=["refined"])
    dataset: Name = Field(description="The dataset to work on.", examples=["fontdigits"])
    model: ModelReference = Field(description="The model that does it.", examples=["my-refiner"])
    operation: str = Field(
        max_length=64, description="An operation that makes one image of one image.", examples=["refine"]
    )
    params: dict[str, Any] = Field({}, description="Parameters of the operation.", examples=[{}])
    column: Literal["images", "input", "target", "a", "b"] | None = Field(
        None, description="Which images, where a dataset has several; by default the first. Only images keep labels."
    )


class DefenceRequest(Request):
    """What to put in front of which classifier."""

    model: ModelReference = Field(description="The classifier; the new model contains this very version of it.")
    name: Name = Field(description="Name of the new model.", examples=["digits-jpeg"])
    stages: list[dict[str, Any]] = Field(
        [],
        max_length=8,
        description="Defences in the order in which an image meets them, each a kind with its settings; see GET.",
        examples=[[{"kind": "jpeg", "quality": 75}]],
    )
    draws: int = Field(16, strict=True, ge=1, le=1024, description="Answers averaged when a stage is random.")
    detector: dict[str, Any] = Field(
        {"kind": "squeezing"}, description="What the operation detect uses, a kind with its settings; see GET."
    )
    dataset: Name | None = Field(
        None, description="Clean images that set the detector's threshold. Empty: those the model learned from."
    )


class OracleAttackRequest(Request):
    """Which images to attack an oracle with, how, and how often it may be asked."""

    method: str = Field("square", max_length=64, description="A black-box attack; GET /v1/oracles lists the possible.")
    params: dict[str, Any] = Field({}, description="Settings of the attack: eps, budget (queries per image) and more.")
    images: list[Annotated[str, Field(max_length=28_000_000)]] | None = Field(
        None, min_length=1, max_length=1000, description="Images of one size, as base64 of PNG, JPEG or WebP."
    )
    dataset: Name | None = Field(None, description="Or a dataset, whose validation images are attacked.")
    start: int = Field(0, strict=True, ge=0, lt=2**31, description="First of them.")
    count: int = Field(16, strict=True, ge=1, le=10_000, description="How many of them.")
    label: int | str | None = Field(None, description="What is right for the images. Empty: what the oracle says.")
    target: int | str | None = Field(None, description="Class to be taken for. Empty: any other.")
    total_budget: int | None = Field(None, strict=True, ge=1, description="Most queries for all images together.")
    seed: Seed | None = Field(None, description="The same request with the same seed makes the same queries.")


class Priced(BaseModel):
    """What a report would cost, in passes of one image through the model, and the request completed."""

    price: dict[str, int] | None
    request: dict[str, Any]


class KeyRequest(Request):
    """A new API key; its token is shown in the answer and never again."""

    name: str = Field(min_length=1, max_length=128, examples=["laptop"])
    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["local"])
    scopes: list[Literal[*SCOPES]] = Field(["read", "write"], min_length=1, max_length=len(SCOPES))
    days: float | None = Field(None, gt=0, le=36500, description="Life of the key; null: until it is revoked.")


class Fault(BaseModel):
    """One field that cannot stay as it is."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a parameter.")
    code: str
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `type` leads to a page about it; `remedy` says what to do."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/errors/not-found"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["not-found"])
    remedy: str | None = None
    retry_after: float | None = Field(None, description="Seconds, as in the header Retry-After.")
    errors: list[Fault] | None = None
    request_id: str | None = None


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


class Tally(BaseModel):
    """Answers given so far about one version of a model, by whoever asks."""

    answered: int
    correct: int
    discriminator_correct: int | None = Field(
        description="How often the model's own discriminator was right on the same pairs; null: it has none."
    )


class Quiz(BaseModel):
    """Two images, of which one is real and one the model's work."""

    id: str
    model: str
    version: str
    images: list[str] = Field(description="Base64 of two PNGs: number 0 and number 1.")
    label: str | None = Field(None, description="The class of both, for a conditional model.")
    tally: Tally
    links: Links


class QuizAnswer(Request):
    id: str = Field(pattern=r"^[0-9a-f]{16}$", description="Id of the question.")
    answer: Literal[0, 1] = Field(description="Number of the image that is taken for real.")


class QuizVerdict(BaseModel):
    """Of a question answered again, the first answer counts."""

    id: str
    answer: int
    real: int = Field(description="Number of the image that is real.")
    correct: bool
    discriminator: int | None = Field(
        description="Number of the image that the model's own discriminator takes for real; null: it has none."
    )
    tally: Tally


class Dataset(BaseModel):
    """Images ready for training. A built-in one is imported when it is first used."""

    name: str
    title: str | None = None
    layout: Layout
    height: int
    width: int
    channels: int
    count: int
    classes: list[str] | None = None
    columns: dict[str, dict[str, int]] | None = Field(
        None, description="Rows by split and column; null until imported."
    )
    digest: str | None = None
    builtin: bool
    installed: bool = Field(description="Whether its data are here: imported, or in an installed package.")
    sizes: list[int] | None = Field(
        None, description="Smallest and largest image_size that a built-in set can be drawn at; null: it has one size."
    )
    twins: bool = Field(False, description="Whether validation rows n of the columns a and b show the same thing.")
    imported: bool
    licence: str | None = None
    attribution: str | None = None
    bytes: int | None = None
    created_at: datetime | None = None
    links: Links


class DatasetImage(BaseModel):
    image: str = Field(description="Base64 of a PNG.")
    label: str | None = None
    index: int | None = Field(None, description="The class as a number.")


class DatasetImages(BaseModel):
    data: list[DatasetImage]
    split: str
    start: int
    total: int


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


class Key(BaseModel):
    id: str
    tenant: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewKey(Key):
    token: str = Field(description="Shown here alone: keep it.")


class Page(BaseModel, Generic[T]):
    data: list[T]
    next_cursor: str | None = Field(None, description="Give it as `cursor` for the next page; null at the end.")


class Health(BaseModel):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str]
