"""Universal perturbations (Moosavi-Dezfooli et al. 2017): one perturbation that fools a model on most images.

An image is fooled when the predicted class changes, whatever the true class. The perturbation is a whole number of
8-bit levels and images are clipped to the pixel range, so that the measured images are those that can be sent.
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
from models.capabilities import UNDECIDED, misclassified, predicted_classes
from models.data import Columns
from models.types import ConfigError, DataError

LEVELS = 255


class UniversalConfig(BaseModel):
    """Settings of a fit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Literal["sgd", "deepfool"] = Field("sgd", description="Sign gradient steps (Shafahi 2020) or DeepFool.")
    norm: Literal["linf", "l2"] = Field("linf", description="Norm of the perturbation.")
    eps: Eps | None = Field(None, gt=0, description="Maximum size. Default: 10/255 for linf, 2000/255 for l2.")
    batch_size: int = Field(64, ge=1, le=4096, description="Images per step of sgd.")
    steps: int = Field(100, ge=1, le=100_000, description="Steps of sgd.")
    passes: int = Field(10, ge=1, le=1000, description="Maximum passes of deepfool over the images.")
    fooling: float = Field(0.8, gt=0, le=1, description="Fraction of fooled training images at which deepfool stops.")
    cap: float = Field(9.0, gt=0, le=1000, description="Maximum loss of one image in sgd.")
    target: int | str | None = Field(None, description="Target class, by name or index. Default: any other class.")
    images: int = Field(2000, ge=1, le=100_000, description="Number of training images, drawn by the seed.")
    held_out: int = Field(2000, ge=1, le=100_000, description="Number of validation images to measure it on.")

    @property
    def radius(self) -> float:
        return self.eps if self.eps is not None else {"linf": 10 / 255, "l2": 2000 / 255}[self.norm]


@dataclass(frozen=True)
class FitProgress:
    """Progress of a fit: steps done, all steps, and the fraction of the last images fooled before the step."""

    step: int
    total: int
    fooling: float


def apply(delta: Tensor, images: Tensor) -> Tensor:
    """Images (N, C, H, W) plus the perturbation (C, H, W), clipped to [0, 1]."""
    return (images + delta).clamp(0, 1)


def whole_levels(delta: Tensor) -> Tensor:
    """The perturbation in whole levels of 1/255, rounded towards zero so that it does not grow."""
    return (delta * LEVELS + 1e-3 * delta.sign()).trunc() / LEVELS


class Universal:
    """A fit as a generator of steps. It can be left at any step and resumed from `state`."""

    def __init__(self, access: WhiteBox, train: Columns, config: UniversalConfig, seed: int = 0):
        self.access, self.train, self.config, self.seed = access, train, config, seed
        if isinstance(config.target, str):
            raise ConfigError(
                f"target must be the index of a class here; you sent the name {config.target}", field="target"
            )
        if config.method == "deepfool" and config.target is not None:
            raise ConfigError("target cannot be set with method deepfool", field="target", remedy="use method sgd")
        self.step, self.fooled, self.norm = 0, 0, NORMS[config.norm]
        first = train.head(1)["images"]
        self.raw = torch.zeros_like(first[0])

    @property
    def delta(self) -> Tensor:
        """The current perturbation (C, H, W) in whole levels."""
        return whole_levels(self.raw)

    def state(self) -> tuple[Tensor, int, int]:
        """The perturbation, the steps done, and the images fooled in the current pass of deepfool."""
        return self.raw.clone(), self.step, self.fooled

    def restore(self, raw: Tensor, step: int, fooled: int = 0) -> None:
        """Continue from a `state`."""
        self.raw, self.step, self.fooled = raw.clone().to(self.raw), step, fooled

    def run(self) -> Iterator[FitProgress]:
        """Yields after each step until the end."""
        with torch.inference_mode(False), torch.no_grad(), self.access.ready():
            yield from self._fit_by_sgd() if self.config.method == "sgd" else self._fit_by_deepfool()

    def _fit_by_sgd(self) -> Iterator[FitProgress]:
        """v <- P(v + eps / 10 * sign(sum of gradients of min(loss, cap))) over mini-batches (Shafahi et al. 2020)."""
        config = self.config
        while self.step < config.steps:
            x = self._images(self.step * config.batch_size, min(config.batch_size, len(self.train)))
            clean = predicted_classes(as_logits(self.access.outputs(x)))
            x, clean = x[clean != UNDECIDED], clean[clean != UNDECIDED]
            if not len(x):
                raise DataError("The model's output is not finite for any image of a batch.", "model")
            leaf, outputs = self.access.outputs_with_graph(self.raw[None], lambda delta, x=x: apply(delta, x))
            with torch.enable_grad():
                logits = as_logits(outputs)
                loss = torch.nn.functional.cross_entropy(logits, self._aim(clean), reduction="none")
                loss = loss.clamp_max(config.cap) if config.target is None else -loss
            gradient = self.access.gradient(leaf, loss).nan_to_num(0, 0, 0)
            fooled = self._fooled(logits, clean)
            self._move(self.norm.steepest(gradient)[0] * config.radius / 10)
            self.step += 1
            yield FitProgress(self.step, config.steps, fooled)

    def _fit_by_deepfool(self) -> Iterator[FitProgress]:
        """v <- P(v + DeepFool(x_i + v)) for each image x_i that v does not fool yet (Moosavi-Dezfooli 2017, alg. 1)."""
        config, count = self.config, len(self.train)
        attack = DeepFool(steps=10, norm=config.norm)
        while self.step < config.passes * count:
            x = self._images(self.step, 1)
            clean = predicted_classes(as_logits(self.access.outputs(x)))
            logits = as_logits(self.access.outputs(apply(self.raw, x)))
            if bool((clean == UNDECIDED).any()):
                pass  # this image says nothing
            elif not bool(misclassified(logits, clean).any()):
                start = apply(self.raw, x)
                result = attack.run(self.access, start, Misclassified(clean))
                if bool(result.success.all()):  # an unsuccessful step would only add noise
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
        hit = misclassified(logits, clean)
        if self.config.target is not None:
            hit = predicted_classes(logits) == self.config.target
        return float(hit.float().mean())

    def _move(self, step: Tensor) -> None:
        radius = torch.full((1,), self.config.radius, device=step.device)
        self.raw = self.norm.project((self.raw + step)[None], radius)[0]


def random_signs(delta: Tensor, seed: int = 0) -> Tensor:
    """A control: random signs of the linf size of `delta` everywhere. An attack should do far better."""
    signs = RowRNG(torch.tensor([seed], device=delta.device)).signs(tuple(delta.shape), "control")[0]
    return whole_levels(signs * delta.abs().amax())


def permuted(delta: Tensor, seed: int = 0) -> Tensor:
    """A control: the pixels of `delta` permuted, all channels alike."""
    channels, height, width = delta.shape
    draw = RowRNG(torch.tensor([seed], device=delta.device)).uniform((height * width,), "permutation")[0]
    return delta.flatten(1)[:, draw.argsort()].view(channels, height, width)


def fooling_rate(access: Access, images: Columns, delta: Tensor, limit: int = 10_000, batch_size: int = 250) -> float:
    """Fraction of the first `limit` images whose predicted class changes."""
    return measure(access, images, {"": delta}, limit, batch_size)[""].rate


@dataclass
class Fooling:
    """Effect of a perturbation: predictions changed of `total`, and how often each class is predicted (K,)."""

    changed: int
    total: int
    answers: Tensor
    right: int | None = None
    """Predictions equal to the label; None without labels."""

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
    """The effect of several perturbations on the first `limit` images; the clean images are evaluated once.

    `names` maps the labels of the data to the model's classes, where they differ. An image is left out of a count if
    the model's output for it, with or without the perturbation, is not finite.
    """
    results: dict[str, Fooling] = {}
    with torch.no_grad(), access.ready():
        for rows in images.batches(batch_size, limit):
            x = rows["images"].to(next(iter(deltas.values())).device)
            clean = access.exact(x)
            before = predicted_classes(clean)
            truth = rows["labels"].to(x.device) if "labels" in rows else None
            if truth is not None and names is not None:
                truth = torch.tensor([names.get(label, -1) for label in truth.tolist()], device=x.device)
            for name, delta in deltas.items():
                answers = predicted_classes(access.exact(apply(delta, x)))
                both = (answers != UNDECIDED) & (before != UNDECIDED)
                result = results.setdefault(name, Fooling(0, 0, torch.zeros(clean.shape[1], dtype=torch.int64)))
                result.changed += int((both & (answers != before)).sum())
                result.total += int(both.sum())
                result.answers += torch.bincount(answers[both].cpu(), minlength=clean.shape[1])
                if truth is not None:
                    result.right = (result.right or 0) + int((both & (answers == truth)).sum())
    if any(result.total == 0 for result in results.values()):
        raise DataError("The model's output is not finite for any of the images.", "model")
    return results


def fooling_matrix(
    models: dict[str, Access], deltas: dict[str, Tensor], images: Columns
) -> dict[str, dict[str, float]]:
    """The fooling rate of each perturbation (rows) on each model (columns)."""
    columns = {model: measure(access, images, deltas) for model, access in models.items()}
    return {name: {model: results[name].rate for model, results in columns.items()} for name in deltas}
