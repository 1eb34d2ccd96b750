"""Universal perturbations: what to fit, and what came of it."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links, ModelReference, Name, Request, Seed


class PerturbationRequest(Request):
    """One perturbation that shall fool a classifier on most images. What is null has the default of the catalog."""

    model: ModelReference = Field(description="The classifier; the perturbation names the exact version.")
    dataset: Name = Field(description="Name of a dataset; built-in ones are imported on the way.", examples=["mnist5k"])
    name: Name | None = Field(None, description="Name of the perturbation; by default the id of its job.")
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same perturbation.")
    method: Literal["sgd", "deepfool"] | None = Field(None, description="Sign gradient steps (default), or DeepFool.")
    norm: Literal["linf", "l2"] | None = Field(None, description="How the perturbation is measured; linf by default.")
    eps: float | str | None = Field(None, description="Its largest size: a number, or k/255.", examples=["10/255"])
    target: int | str | None = Field(None, description="Class to be taken for, by name or index; null: any other.")
    images: int | None = Field(None, description="Training images to fit it to.")
    held_out: int | None = Field(None, description="Validation images to measure it on.")
    steps: int | None = Field(None, description="Steps of sgd.")
    batch_size: int | None = Field(None, description="Images of one step of sgd.")
    cap: float | None = Field(None, description="Largest loss one image may contribute in sgd.")
    passes: int | None = Field(None, description="Most passes of deepfool over the images.")
    fooling: float | None = Field(None, description="Share of fooled training images at which deepfool stops.")


class Perturbation(BaseModel):
    """A universal perturbation: how it was fitted, how often it fools, beside controls of the same size."""

    name: str
    digest: str
    model: str
    version: str = Field(description="Digest of the model it was fitted to.")
    dataset: str
    dataset_digest: str
    method: str
    norm: str
    eps: float
    seed: int
    shape: list[int] = Field(description="Channels, height, width.")
    linf_255: int
    l2: float
    fooling: dict[str, Any] = Field(description="Rates with 95 % intervals, on training and on held-out images.")
    controls: dict[str, Any] = Field(description="The same for random signs and for its own values in other places.")
    dominant: dict[str, Any] = Field(description="The class that perturbed images are taken for most.")
    target: dict[str, Any] | None = None
    accuracy: dict[str, float] | None = None
    config: dict[str, Any]
    notes: list[str] = []
    bytes: int
    created_at: datetime
    links: Links
