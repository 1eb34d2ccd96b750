"""Requests for durable work: what to train, report, derive, defend or attack."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from app.core.wire.terms import ModelReference, Name, Request, Seed


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
        {"kind": "squeezing"},
        description="What the operation detect-adversarial uses, a kind with its settings; see GET.",
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


class CheckedTraining(BaseModel):
    """A training's request with every setting that the service would decide from the dataset."""

    request: dict[str, Any]


class Priced(BaseModel):
    """What a report would cost, in passes of one image through the model, and the request completed."""

    price: dict[str, int] | None
    request: dict[str, Any]
