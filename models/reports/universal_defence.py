"""Does it help to train on perturbed images? A classifier is tuned on them and perturbed anew (Moosavi 2017)."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core.access import WhiteBox
from models.attacks.core.universal import Fooling, Universal, UniversalConfig, measure, random_signs
from models.capabilities import Classifies
from models.data import Columns
from models.evaluation.confidence import wilson
from models.family import Family
from models.reports.core.base import Findings, Progress, Report, Run, Subject
from models.seeds import derive
from models.training.loop import Training
from models.types import ConfigError

PARTS = 1000
"""Of progress, in each of the three stages."""


class UniversalDefenceParams(UniversalConfig):
    """How perturbations are fitted, and how the classifier is tuned on them."""

    perturbations: list[str] = Field(
        [], max_length=16, description="Stored perturbations to tune on. Empty: one is fitted first."
    )
    epochs: float = Field(5.0, gt=0, le=1000, description="Passes over the tuning images.")
    share: float = Field(0.5, ge=0, le=1, description="Share of the tuning images that are perturbed.")
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Step size of the tuning at its start.")


class UniversalDefenceReport(Report):
    """The tuned copy is measured and dropped. Tuning that helps lowers the rate of a perturbation fitted to it anew."""

    name = "universal_defence"
    summary = "Tunes a copy of a classifier on universally perturbed images, then fits a new perturbation to it."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = UniversalDefenceParams
    price = {
        "forwards": "(2 - min(count_perturbations, 1)) * (method_sgd * 2 * steps * min(batch_size, train_images)"
        " + method_deepfool * passes * train_images * 15) + epochs * train * 1.1 + 192"
        " + 10 * min(held_out, validation)",
        "backwards": "(2 - min(count_perturbations, 1)) * (method_sgd * steps * min(batch_size, train_images)"
        " + method_deepfool * passes * train_images * 11 * min(9, classes - 1)) + epochs * train + 128",
    }

    def run(self, subject: Subject, params: UniversalDefenceParams, kept: Any = None) -> Run:
        model, images = subject.model, drawn(subject, params.images)
        if subject.data.classes != model.data.classes:
            raise ConfigError("the dataset has other classes than the model", field="dataset")
        if isinstance(params.target, str):
            params = params.model_copy(update={"target": model.data.class_index(params.target)})
        deltas = [*subject.perturbations.values()]
        if not deltas:
            deltas = [(yield from fitted(model, images, params, subject.seed, 0))]
        if any(tuple(delta.shape) != subject.data.shape for delta in deltas):
            raise ConfigError("a perturbation is of another size", field="params/perturbations")
        tuned = yield from tune(subject, deltas, params)
        fresh = yield from fitted(tuned, images, params, subject.seed, 2)
        rows = []
        for title, net in {"before": model, "after": tuned}.items():
            tried = {"first": deltas[0], "refitted": fresh, "random_signs": random_signs(deltas[0])}
            tried |= {"none": torch.zeros_like(fresh)}
            found = measure(boxed(net), subject.validation, tried, params.held_out)
            rows += [{"model": title, "perturbation": name} | rated(part) for name, part in found.items()]
        by = {(row["model"], row["perturbation"]): row for row in rows}
        facts = {
            "fooling_before": by["before", "first"]["fooling"],
            "fooling_after_same": by["after", "first"]["fooling"],
            "fooling_after_refitted": by["after", "refitted"]["fooling"],
            "accuracy_before": by["before", "none"]["accuracy"],
            "accuracy_after": by["after", "none"]["accuracy"],
        }
        return Findings(facts, {"measured": rows}, notes=[told(facts)])


def told(facts: dict[str, float]) -> str:
    before, after = facts["fooling_before"], facts["fooling_after_refitted"]
    verb = "lowers" if after < before else "does not lower"
    return (
        f"Tuning {verb} the fooling rate of a perturbation fitted to the model: {before:.1%} before, {after:.1%} after."
    )


def rated(found: Fooling) -> dict[str, Any]:
    low_high = wilson(found.changed, found.total)
    return {"fooling": found.rate, "interval": low_high, "accuracy": (found.right or 0) / found.total}


def boxed(model: Family) -> WhiteBox:
    return WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)


def drawn(subject: Subject, count: int) -> Columns:
    """Training images without regard to their order."""
    rows = len(subject.train.columns["images"])
    order = np.random.Generator(np.random.Philox(derive(subject.seed, "drawn"))).permutation(rows)[:count]
    return Columns({"images": subject.train.columns["images"][np.sort(order)]})


def fitted(model: Family, images: Columns, params: UniversalDefenceParams, seed: int, stage: int):
    """Steps of a fit; returns the perturbation."""
    config = UniversalConfig(**params.model_dump(include=set(UniversalConfig.model_fields)))
    fit = Universal(boxed(model), images, config, derive(seed, "fit", stage))
    fit.raw = fit.raw.to(model.device)
    for step in fit.run():
        yield Progress(stage * PARTS + PARTS * step.step // step.total, 3 * PARTS)
    return fit.delta


def tune(subject: Subject, deltas: list[Tensor], params: UniversalDefenceParams):
    """Updates of a copy on images of which `share` are perturbed; returns the copy, frozen."""
    model, seed = subject.model, derive(subject.seed, "tune") % 2**31
    clean, labels = subject.train.columns["images"], subject.train.columns["labels"]
    draws = np.random.Generator(np.random.Philox(seed))
    chosen = draws.integers(0, len(deltas), len(clean))
    chosen[draws.random(len(clean)) >= params.share] = -1
    mixed = np.array(clean)
    for place, delta in enumerate(deltas):
        steps = np.rint(delta.cpu().numpy() * 255).astype(np.int16)
        mixed[chosen == place] = np.clip(mixed[chosen == place].astype(np.int16) + steps, 0, 255).astype(np.uint8)
    length = {"images": max(1, round(params.epochs * len(clean))), "learning_rate": params.learning_rate}
    config = type(model).Config(**(model.config.model_dump() | length))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        copy = type(model)(type(model).resolve_config(config, model.data), model.data).to(model.device)
    copy.load_state_dict(model.state_dict())
    training = Training(copy, Columns({"images": mixed, "labels": labels}), subject.validation, seed)
    copy.train()
    while training.images < training.total:
        with torch.enable_grad():
            training.advance()
        yield Progress(PARTS + PARTS * training.images // training.total, 3 * PARTS)
    return copy.eval().requires_grad_(False)
