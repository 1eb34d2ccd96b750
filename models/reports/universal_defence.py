"""Adversarial fine-tuning on universal perturbations (Moosavi-Dezfooli et al. 2017): fooling rates before and after."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core.universal import Fooling, Universal, UniversalConfig, measure, random_signs
from models.capabilities import Classifies
from models.data import Columns
from models.evaluation.confidence import wilson
from models.family import Family
from models.reports.core.base import Progress, Report, ReportResult, Run, Subject
from models.reports.core.classification import classifier_access
from models.seeds import derive
from models.training.loop import Training
from models.types import ConfigError

PARTS = 1000
"""Units of progress in each of the three stages."""


class UniversalDefenceParams(UniversalConfig):
    """How perturbations are fitted, and how the classifier is fine-tuned on them."""

    perturbations: list[str] = Field(
        [], max_length=16, description="Names of universal perturbations to tune on. Default: one is fitted first."
    )
    epochs: float = Field(5.0, gt=0, le=1000, description="Epochs of the fine-tuning.")
    share: float = Field(0.5, ge=0, le=1, description="Fraction of the training images that are perturbed.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Initial learning rate of the fine-tuning.")


class UniversalDefenceReport(Report):
    """A copy of the classifier is fine-tuned, measured and discarded. If the tuning helps, a new perturbation fitted to
    the copy has a lower fooling rate. An interrupted report starts again from the beginning.
    """

    name = "universal_defence"
    summary = "Fine-tunes a copy of a classifier on universally perturbed images, then fits a new perturbation to it."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = UniversalDefenceParams
    price = {
        "forwards": "(2 - min(count_perturbations, 1)) * (method_sgd * 2 * steps * min(batch_size, train_images)"
        " + method_deepfool * passes * train_images * 15) + epochs * train * 1.1 + 192 + 10 * min(held_out, "
        "validation)",
        "backwards": "(2 - min(count_perturbations, 1)) * (method_sgd * steps * min(batch_size, train_images)"
        " + method_deepfool * passes * train_images * 11 * min(9, classes - 1)) + epochs * train + 128",
    }

    def run(self, subject: Subject, params: UniversalDefenceParams, progress_state: Any = None) -> Run:
        model, images = subject.model, random_images(subject, params.images)
        if subject.data.classes != model.data.classes:
            raise ConfigError(
                "the dataset's classes differ from the model's",
                field="dataset",
                remedy="use the dataset the model was trained on",
            )
        if params.target is not None:
            params = params.model_copy(update={"target": model.data.class_index(params.target)})
        deltas = [*subject.perturbations.values()]
        if not deltas:
            deltas = [(yield from fit_perturbation(model, images, params, subject.seed, 0))]
        if any(tuple(delta.shape) != subject.data.shape for delta in deltas):
            raise ConfigError(f"a perturbation is not of shape {subject.data.shape}", field="params/perturbations")
        tuned = yield from tune(subject, deltas, params)
        fresh = yield from fit_perturbation(tuned, images, params, subject.seed, 2)
        rows = []
        for title, net in {"before": model, "after": tuned}.items():
            deltas_by_name = {"first": deltas[0], "refitted": fresh, "random_signs": random_signs(deltas[0])}
            deltas_by_name |= {"none": torch.zeros_like(fresh)}
            measured = measure(classifier_access(net), subject.validation, deltas_by_name, params.held_out)
            rows += [{"model": title, "perturbation": name} | rates(each) for name, each in measured.items()]
        by = {(row["model"], row["perturbation"]): row for row in rows}
        facts = {
            "fooling_before": by["before", "first"]["fooling"],
            "fooling_after_same": by["after", "first"]["fooling"],
            "fooling_after_refitted": by["after", "refitted"]["fooling"],
            "accuracy_before": by["before", "none"]["accuracy"],
            "accuracy_after": by["after", "none"]["accuracy"],
        }
        return ReportResult(facts, {"measured": rows}, notes=[note(facts)])


def note(facts: dict[str, float]) -> str:
    """Whether the fine-tuning helped, in a sentence."""
    before, after = facts["fooling_before"], facts["fooling_after_refitted"]
    verb = "lowers" if after < before else "does not lower"
    return (
        f"Tuning {verb} the fooling rate of a perturbation fitted to the model: {before:.1%} before, {after:.1%} after."
    )


def rates(fooling: Fooling) -> dict[str, Any]:
    """Fooling rate with its 95 % interval, and accuracy."""
    interval = wilson(fooling.changed, fooling.total)
    return {"fooling": fooling.rate, "interval": interval, "accuracy": (fooling.right or 0) / fooling.total}


def random_images(subject: Subject, count: int) -> Columns:
    """At most `count` random training images."""
    rows = len(subject.train.columns["images"])
    order = np.random.Generator(np.random.Philox(derive(subject.seed, "drawn"))).permutation(rows)[:count]
    return Columns({"images": subject.train.columns["images"][np.sort(order)]})


def fit_perturbation(model: Family, images: Columns, params: UniversalDefenceParams, seed: int, stage: int):
    """Fits a universal perturbation; yields Progress, returns it (C, H, W)."""
    config = UniversalConfig(**params.model_dump(include=set(UniversalConfig.model_fields)))
    fit = Universal(classifier_access(model), images, config, derive(seed, "fit", stage))
    fit.raw = fit.raw.to(model.device)
    for step in fit.run():
        yield Progress(stage * PARTS + PARTS * step.step // step.total, 3 * PARTS)
    return fit.delta


def tune(subject: Subject, deltas: list[Tensor], params: UniversalDefenceParams):
    """Fine-tunes a copy on training images of which the fraction `share` is perturbed; returns the copy, frozen."""
    model, seed = subject.model, derive(subject.seed, "tune") % 2**31
    clean, labels = subject.train.columns["images"], subject.train.columns["labels"]
    draws = np.random.Generator(np.random.Philox(seed))
    which = draws.integers(0, len(deltas), len(clean))  # index of the perturbation of each image, -1 for none
    which[draws.random(len(clean)) >= params.share] = -1
    mixed = np.array(clean)
    for place, delta in enumerate(deltas):
        steps = np.rint(delta.cpu().numpy() * 255).astype(np.int16)
        mixed[which == place] = np.clip(mixed[which == place].astype(np.int16) + steps, 0, 255).astype(np.uint8)
    length = {"images": max(1, round(params.epochs * len(clean))), "learning_rate": params.learning_rate}
    config = type(model).Config(**(model.config.model_dump() | length))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = type(model)(type(model).resolve_config(config, model.data), model.data).to(model.device)
    copy.load_state_dict(model.serving_state())
    training = Training(copy, Columns({"images": mixed, "labels": labels}), subject.validation, seed)
    copy.train()
    while training.images < training.total:
        with torch.enable_grad():
            training.advance()
        yield Progress(PARTS + PARTS * training.images // training.total, 3 * PARTS)
    return copy.eval().requires_grad_(False)
