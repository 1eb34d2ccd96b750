"""Universal perturbations: requests and results."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.core.wire.terms import Links, ModelReference, Name, Request, Seed


class PerturbationRequest(Request):
    """One perturbation that fools a classifier on most images. Null means the default of the catalog."""

    model: ModelReference = Field(description="The classifier; the job has its exact version.")
    dataset: Name = Field(description="Name of a dataset; built-in ones are imported first.", examples=["mnist5k"])
    name: Name | None = Field(None, description="Name of the perturbation. Default: the id of its job.")
    seed: Seed | None = Field(None, description="The same request with the same seed gives the same perturbation.")
    method: Literal["sgd", "deepfool"] | None = Field(None, description="Sign gradient steps (default), or DeepFool.")
    norm: Literal["linf", "l2"] | None = Field(None, description="Norm of the perturbation. Default: linf.")
    eps: float | str | None = Field(None, description="Maximum norm: a number, or k/255.", examples=["10/255"])
    target: int | str | None = Field(
        None, description="Class that the classifier should answer, name or index. Default: any other."
    )
    images: int | None = Field(None, description="Number of training images to fit to.")
    held_out: int | None = Field(None, description="Number of validation images to measure on.")
    steps: int | None = Field(None, description="Number of steps of sgd.")
    batch_size: int | None = Field(None, description="Images in one step of sgd.")
    cap: float | None = Field(None, description="Maximum loss of one image in sgd.")
    passes: int | None = Field(None, description="Maximum passes of deepfool over the images.")
    fooling: float | None = Field(None, description="Fraction of fooled training images at which deepfool stops.")


class Perturbation(BaseModel):
    """A universal perturbation: how it was fitted, and its fooling rates beside controls of the same norm."""

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
    controls: dict[str, Any] = Field(description="The same for random signs and for its own values at permuted pixels.")
    dominant: dict[str, Any] = Field(description="The most frequent prediction for perturbed images.")
    target: dict[str, Any] | None = None
    accuracy: dict[str, float] | None = None
    config: dict[str, Any]
    notes: list[str] = []
    bytes: int
    created_at: datetime
    links: Links
