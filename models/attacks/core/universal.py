"""Universal perturbations: one change that fools a model on most images, fitted to many of them.

Fooling means that the model's answer changes, whatever the truth is. Images are changed inside the pixel range and the
perturbation is a whole number of levels, so that what is measured is what can be sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from models.attacks.core.access import Access, WhiteBox
from models.attacks.core.base import Eps
from models.attacks.core.logits import as_logits
from models.attacks.core.norms import NORMS
from models.attacks.core.rng import RowRNG
from models.attacks.criteria.classification import Misclassified
from models.attacks.deepfool import DeepFool
from models.data import Columns
from models.types import ConfigError

LEVELS = 255


class UniversalConfig(BaseModel):
    """Settings of a fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["sgd", "deepfool"] = Field("sgd", description="Sign gradient steps (Shafahi 2020) or DeepFool.")
    norm: Literal["linf", "l2"] = Field("linf", description="How the perturbation is measured.")
    eps: Eps | None = Field(None, gt=0, description="Its largest size. Empty: 10/255 for linf, 2000/255 for l2.")
    batch_size: int = Field(64, ge=1, le=4096, description="Images of one step of sgd.")
    steps: int = Field(100, ge=1, le=100_000, description="Steps of sgd.")
    passes: int = Field(10, ge=1, le=1000, description="Most passes of deepfool over the images.")
    fooling: float = Field(0.8, gt=0, le=1, description="Share of fooled training images at which deepfool stops.")
    cap: float = Field(9.0, gt=0, le=1000, description="Largest loss one image may contribute in sgd.")
    target: int | str | None = Field(None, description="Class to be taken for, by name or index. Empty: any other.")
    images: int = Field(2000, ge=1, le=100_000, description="Training images to fit it to, drawn by the seed.")
    held_out: int = Field(2000, ge=1, le=100_000, description="Validation images to measure it on.")

    @property
    def radius(self) -> float:
        return self.eps if self.eps is not None else {"linf": 10 / 255, "l2": 2000 / 255}[self.norm]


@dataclass(frozen=True)
class FitProgress:
    """Where a fit is: steps done of all, and the share of the last images that it fooled before the step."""

    step: int
    total: int
    fooling: float


def apply(delta: Tensor, images: Tensor) -> Tensor:
    """Images (N, C, H, W) with the perturbation (C, H, W), inside the pixel range."""
    return (images + delta).clamp(0, 1)


def whole_levels(delta: Tensor) -> Tensor:
    """The perturbation in whole levels, rounded towards zero so that it does not grow."""
    return (delta * LEVELS + 1e-3 * delta.sign()).trunc() / LEVELS


class Universal:
    """A fit as a generator of steps; leaving the loop stops it, and `state` is all that a resumed one needs."""

    def __init__(self, access: WhiteBox, train: Columns, config: UniversalConfig, seed: int = 0):
        self.access, self.train, self.config, self.seed = access, train, config, seed
        if isinstance(config.target, str):
            raise ConfigError("the target of a fit is the index of a class", field="target")
        if config.method == "deepfool" and config.target is not None:
            raise ConfigError("deepfool fits no target", field="target", remedy="use method sgd")
        self.step, self.fooled, self.norm = 0, 0, NORMS[config.norm]
        first = train.head(1)["images"]
        self.raw = torch.zeros_like(first[0])

    @property
    def delta(self) -> Tensor:
        """The perturbation (C, H, W) found so far, in whole levels."""
        return whole_levels(self.raw)

    def state(self) -> tuple[Tensor, int, int]:
        """The perturbation, the steps done, and the images already fooled in the present pass of deepfool."""
        return self.raw.clone(), self.step, self.fooled

    def restore(self, raw: Tensor, step: int, fooled: int = 0) -> None:
        """Go on from what `state` gave."""
        self.raw, self.step, self.fooled = raw.clone().to(self.raw), step, fooled

    def run(self) -> Iterator[FitProgress]:
        """Step until the end."""
        with torch.inference_mode(False), torch.no_grad(), self.access.ready():
            yield from self._descend() if self.config.method == "sgd" else self._gather()

    def _descend(self) -> Iterator[FitProgress]:
        """v <- P(v + eps / 10 * sign of the summed gradient of min(loss, cap)) over mini-batches."""
        config = self.config
        while self.step < config.steps:
            x = self._images(self.step * config.batch_size, min(config.batch_size, len(self.train)))
            clean = as_logits(self.access.outputs(x)).argmax(1)
            leaf, outputs = self.access.outputs_with_graph(self.raw[None], lambda delta, x=x: apply(delta, x))
            with torch.enable_grad():
                logits = as_logits(outputs)
                loss = torch.nn.functional.cross_entropy(logits, self._aim(clean), reduction="none")
                loss = loss.clamp_max(config.cap) if config.target is None else -loss
            gradient = self.access.gradient(leaf, loss)
            fooled = self._fooled(logits, clean)
            self._move(self.norm.steepest(gradient)[0] * config.radius / 10)
            self.step += 1
            yield FitProgress(self.step, config.steps, fooled)

    def _gather(self) -> Iterator[FitProgress]:
        """Moosavi-Dezfooli et al. (2017), algorithm 1: for each image not yet fooled add the step that fools it."""
        config, count = self.config, len(self.train)
        attack = DeepFool(steps=10, norm=config.norm)
        while self.step < config.passes * count:
            x = self._images(self.step, 1)
            clean = as_logits(self.access.outputs(x)).argmax(1)
            if bool((as_logits(self.access.outputs(apply(self.raw, x))).argmax(1) == clean).all()):
                start = apply(self.raw, x)
                result = attack.run(self.access, start, Misclassified(clean))
                if bool(result.success.all()):  # a step that did not arrive would only add noise
                    self._move((result.images - start)[0])
            else:
                self.fooled += 1
            self.step += 1
            share = self.fooled / ((self.step - 1) % count + 1)
            if self.step % count == 0:
                if self.fooled >= config.fooling * count:
                    self.step = config.passes * count
                self.fooled = 0
            yield FitProgress(self.step, config.passes * count, share)

    def _images(self, start: int, size: int) -> Tensor:
        return self.train.batch(self.seed, start, size)["images"].to(self.raw.device)

    def _aim(self, clean: Tensor) -> Tensor:
        return clean if self.config.target is None else torch.full_like(clean, self.config.target)

    def _fooled(self, logits: Tensor, clean: Tensor) -> float:
        answer = logits.argmax(1)
        hit = answer != clean if self.config.target is None else answer == self.config.target
        return float(hit.float().mean())

    def _move(self, step: Tensor) -> None:
        radius = torch.full((1,), self.config.radius, device=step.device)
        self.raw = self.norm.project((self.raw + step)[None], radius)[0]


def random_signs(delta: Tensor, seed: int = 0) -> Tensor:
    """A control: random signs as large as `delta` everywhere (linf), which an attack has to beat by far."""
    signs = RowRNG(torch.tensor([seed], device=delta.device)).signs(tuple(delta.shape), "control")[0]
    return whole_levels(signs * delta.abs().amax())


def permuted(delta: Tensor, seed: int = 0) -> Tensor:
    """A control: the same values in other places, each channel alike."""
    channels, height, width = delta.shape
    draw = RowRNG(torch.tensor([seed], device=delta.device)).uniform((height * width,), "permutation")[0]
    return delta.flatten(1)[:, draw.argsort()].view(channels, height, width)


def fooling_rate(access: Access, images: Columns, delta: Tensor, limit: int = 10_000, batch_size: int = 250) -> float:
    """Share of the first `limit` images whose answer changes."""
    return measure(access, images, {"": delta}, limit, batch_size)[""].rate


@dataclass
class Fooling:
    """What a perturbation does to a model: answers changed of `total`, and how often each class is the answer."""

    changed: int
    total: int
    answers: Tensor
    right: int | None = None
    """Answers that agree with the label, where there are labels."""

    @property
    def rate(self) -> float:
        return self.changed / max(self.total, 1)


def measure(
    access: Access,
    images: Columns,
    deltas: dict[str, Tensor],
    limit: int = 10_000,
    batch_size: int = 250,
    names: dict[int, int] | None = None,
) -> dict[str, Fooling]:
    """What each of several perturbations does to the first `limit` images, which the model sees clean once.

    `names` maps the labels of the data to the model's classes, where they differ.
    """
    found: dict[str, Fooling] = {}
    with torch.no_grad(), access.ready():
        for rows in images.batches(batch_size, limit):
            x = rows["images"].to(next(iter(deltas.values())).device)
            clean = access.exact(x)
            truth = rows["labels"].to(x.device) if "labels" in rows else None
            if truth is not None and names is not None:
                truth = torch.tensor([names.get(label, -1) for label in truth.tolist()], device=x.device)
            for name, delta in deltas.items():
                answers = access.exact(apply(delta, x)).argmax(1)
                known = found.setdefault(name, Fooling(0, 0, torch.zeros(clean.shape[1], dtype=torch.int64)))
                known.changed += int((answers != clean.argmax(1)).sum())
                known.total += len(x)
                known.answers += torch.bincount(answers.cpu(), minlength=clean.shape[1])
                if truth is not None:
                    known.right = (known.right or 0) + int((answers == truth).sum())
    return found


def fooling_matrix(
    models: dict[str, Access], deltas: dict[str, Tensor], images: Columns
) -> dict[str, dict[str, float]]:
    """How often each perturbation (rows) fools each model (columns)."""
    columns = {model: measure(access, images, deltas) for model, access in models.items()}
    return {name: {model: found[name].rate for model, found in columns.items()} for name in deltas}
