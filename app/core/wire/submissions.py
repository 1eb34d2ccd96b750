"""Requests for jobs: training, report, derivation, defence, attack on an oracle."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.core.wire.jobs import Forecast
from app.core.wire.terms import ModelReference, Name, Request, Seed


class Fork(Request):
    """A checkpoint of a training: the last one, or one that GET /v1/jobs/{id}/snapshots lists."""

    job: str = Field(max_length=36, description="Id of the training.")
    images: int | None = Field(
        None,
        strict=True,
        ge=0,
        lt=2**63,
        description="Images shown until the checkpoint. Default: the last checkpoint.",
    )


class TrainingRequest(Request):
    """A family to train on a dataset. An empty config trains well: its defaults depend on the dataset.

    A fork inherits the family, dataset, seed and settings that the request does not have.
    """

    family: str | None = Field(
        None,
        max_length=64,
        description="Family of the model; GET /v1/families lists them. Optional only with fork_from.",
        examples=["vae"],
    )
    dataset: Name | None = Field(
        None,
        description="Name of a dataset; built-in ones are imported first. Optional only with fork_from.",
        examples=["mnist5k"],
    )
    config: dict[str, Any] = Field(
        {}, description="Settings of the family; GET /v1/families has their schema.", examples=[{"epochs": 5}]
    )
    name: Name | None = Field(None, description="Name of the model. Default: FAMILY-DATASET.", examples=["my-vae"])
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same model.")
    devices: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=64,
        description="Devices of one worker that share each batch (batch_size is that of all together). Default: 1.",
    )
    accumulate: int | None = Field(
        None,
        strict=True,
        ge=1,
        le=64,
        description="Parts of each batch whose gradients are computed one after the other, which needs less memory; "
        "for families with one loss. Default: 1.",
    )
    measure: Literal["full", "quick", "none"] = Field(
        "full",
        description="How the finished model is measured, by a job of its own while it can be used already. quick: on "
        "at most 500 validation images, without metrics that need a network learned for them.",
    )
    init_from: ModelReference | None = Field(None, description="Model whose weights the training starts from.")
    fork_from: Annotated[
        Fork | None,
        BeforeValidator(lambda value: {"job": value} if isinstance(value, str) else value, str | Fork | None),
    ] = Field(
        None, description="Training to continue with other settings: the id of its job, or an object with a checkpoint."
    )


class ReportRequest(Request):
    """A kind of report, a model and a dataset."""

    report: str = Field(
        "robustness", max_length=64, description="Kind of report; GET /v1/reports lists them.", examples=["cluster"]
    )
    model: ModelReference = Field(description="The model; the job has its exact version.")
    dataset: Name = Field(description="Name of a dataset; built-in ones are imported first.", examples=["mnist5k"])
    params: dict[str, Any] = Field({}, description="Settings of the report; GET /v1/reports has their schema.")
    attacks: list[str | dict[str, Any]] | None = Field(
        None,
        max_length=16,
        description="The same as params.attacks: names, or objects with method and settings.",
        examples=[["fgsm", {"method": "pgd", "steps": 100}]],
    )
    eps: list[float | str] | None = Field(
        None, max_length=64, description="The same as params.eps.", examples=[["4/255", "8/255"]]
    )
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same report.")


class DerivedRequest(Request):
    """A dataset, the model and the operation to apply to it, and the name of the new dataset."""

    name: Name = Field(description="Name of the new dataset.", examples=["refined"])
    dataset: Name = Field(description="Dataset whose images are the input.", examples=["fontdigits"])
    model: ModelReference = Field(description="Model that is applied.", examples=["my-refiner"])
    operation: str = Field(
        max_length=64, description="An operation that gives one image for one image.", examples=["refine"]
    )
    params: dict[str, Any] = Field({}, description="Parameters of the operation.", examples=[{}])
    column: Literal["images", "input", "target", "a", "b"] | None = Field(
        None, description="Column of the input images. Default: the first. Only the column images keeps its labels."
    )


class DefenceRequest(Request):
    """A classifier and the defences in front of it."""

    model: ModelReference = Field(description="The classifier; the new model contains this version of it.")
    name: Name = Field(description="Name of the new model.", examples=["digits-jpeg"])
    stages: list[dict[str, Any]] = Field(
        [],
        max_length=8,
        description="Defences in the order in which they are applied, each a kind with its settings; see GET.",
        examples=[[{"kind": "jpeg", "quality": 75}]],
    )
    draws: int = Field(
        16, strict=True, ge=1, le=1024, description="Number of answers that are averaged if a stage is random."
    )
    detector: dict[str, Any] = Field(
        {"kind": "squeezing"},
        description="What the operation detect-adversarial uses, a kind with its settings; see GET.",
    )
    dataset: Name | None = Field(
        None, description="Clean images that set the threshold of the detector. Default: the dataset of the classifier."
    )


class OracleAttackRequest(Request):
    """Images, an attack, and the maximum number of queries."""

    method: str = Field(
        "square", max_length=64, description="A black-box attack; GET /v1/oracles lists those for each oracle."
    )
    params: dict[str, Any] = Field({}, description="Settings of the attack: eps, budget (queries per image) and more.")
    images: list[Annotated[str, Field(max_length=28_000_000)]] | None = Field(
        None, min_length=1, max_length=1000, description="Images of one size, as base64 of PNG, JPEG or WebP."
    )
    dataset: Name | None = Field(None, description="Dataset whose validation images are attacked, in place of images.")
    start: int = Field(0, strict=True, ge=0, lt=2**31, description="Index of the first image of the dataset.")
    count: int = Field(16, strict=True, ge=1, le=10_000, description="Number of images of the dataset.")
    label: int | str | None = Field(None, description="True class of all images. Default: the answer of the oracle.")
    target: int | str | None = Field(
        None, description="Class that the oracle should answer. Default: any other than the label."
    )
    total_budget: int | None = Field(
        None, strict=True, ge=1, description="Maximum number of queries for all images together."
    )
    seed: Seed | None = Field(None, description="The same request with the same seed makes the same queries.")


class CheckedTraining(BaseModel):
    """The request of a training with every setting that depends on the dataset."""

    request: dict[str, Any]
    forecast: Forecast | None = None


class Priced(BaseModel):
    """The price of a report, in passes of one image through the model, and the complete request."""

    price: dict[str, int] | None
    request: dict[str, Any]
