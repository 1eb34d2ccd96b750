"""Classifiers with few labels: linear probe and fine-tuning of an encoder against training from scratch."""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field

from models.capabilities import Encodes
from models.data import Columns
from models.evaluation import metrics
from models.families.autoencoders.base import CONVOLUTIONAL, AutoencoderBase
from models.families.classifiers.classifier import Classifier
from models.family import Family
from models.reports.core.base import Curve, Params, Progress, Report, ReportResult, Run, Subject
from models.seeds import derive
from models.training.loop import Training
from models.types import DataError, DataSpec

METHODS = ("scratch", "probe", "fine_tuned")
CHUNK = 20  # updates between two Progress
SHAPE = ("latent_dim", "hidden", "width", "code")


class PretrainingParams(Params):
    """The numbers of labels, and the trainings."""

    labels: list[int] = Field(
        [100, 1000],
        max_length=8,
        description="Numbers of labelled images to train on; the full set is always included.",
    )
    images: int = Field(12_800, ge=64, le=10**8, description="Length of each training in images.")
    batch_size: int = Field(32, ge=2, le=1024, description="Images per update.")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="Initial learning rate of each training.")
    seeds: int = Field(
        3, ge=1, le=20, description="Trainings of each kind, with other labels, initial weights and order."
    )


class PretrainingReport(Report):
    """All classifiers consist of the encoder's network and one linear layer. `scratch` starts from new weights, `probe`
    trains the last layer alone, `fine_tuned` starts from the encoder and trains all weights.
    """

    name = "pretraining"
    summary = (
        "Compares classifiers that start from this encoder with classifiers trained from scratch, by number of labels."
    )
    needs = (Encodes,)
    columns = ("images", "labels")
    Params = PretrainingParams

    @classmethod
    def fits(cls, family: type[Family]) -> bool:
        return issubclass(family, AutoencoderBase)

    @classmethod
    def check(cls, model: Family, data: DataSpec) -> None:
        super().check(model, data)
        if not data.classes or len(data.classes) < 2:
            raise DataError(
                f"pretraining needs at least 2 classes, this dataset has {len(data.classes or ())}",
                "dataset",
                "use a labelled dataset",
            )
        if data.columns["train"].get("labels", 0) < 2:
            raise DataError(
                "pretraining needs at least 2 labelled training images", "dataset", "use a larger labelled dataset"
            )

    def run(self, subject: Subject, params: PretrainingParams, progress_state: Any = None) -> Run:
        plan = list(planned_trainings(subject, params))
        accuracies: list[float] = list(progress_state or [])
        updates = -(-params.images // params.batch_size)
        while len(accuracies) < len(plan):
            count, method, seed = plan[len(accuracies)]
            training = new_training(subject, params, count, method, seed)
            while training.images < training.total:
                with torch.enable_grad():
                    training.advance()
                if training.step % CHUNK == 0:
                    yield Progress(len(accuracies) * updates + training.step, len(plan) * updates)
            accuracies.append(accuracy(training.family.eval(), subject.validation))
            yield Progress(len(accuracies) * updates, len(plan) * updates, list(accuracies))
        return pretraining_result(subject, plan, accuracies)


def planned_trainings(subject: Subject, params: PretrainingParams) -> Generator[tuple[int, str, int], None, None]:
    """(labels, method, seed) of every training. Raises DataError for fewer than 2 labels."""
    every = len(subject.train.columns["labels"])
    if few := [count for count in params.labels if count < 2]:
        raise DataError(f"labels must be at least 2; you sent {few[0]}", field="params/labels")
    for count in sorted({*(count for count in params.labels if count < every), every}):
        for seed in range(params.seeds):
            yield from ((count, method, seed) for method in METHODS)


def new_training(subject: Subject, params: PretrainingParams, count: int, method: str, seed: int) -> Training:
    """The training of a new classifier; for one seed, all methods use the same labels in the same order."""
    encoder, number = subject.model, derive(subject.seed, "pretraining", seed)
    rows = balanced_rows(np.asarray(subject.train.columns["labels"]), count, number)
    names = {name: np.asarray(subject.train.columns[name])[rows] for name in ("images", "labels")}
    columns = {"train": dict.fromkeys(names, count), "validation": subject.data.columns["validation"]}
    body = "conv" if encoder.config.body in CONVOLUTIONAL else encoder.config.body
    config = {name: getattr(encoder.config, name) for name in SHAPE} | {"body": body}
    config |= {"images": params.images, "batch_size": params.batch_size, "learning_rate": params.learning_rate}
    torch.manual_seed(number)
    config |= {"trained": "head" if method == "probe" else "all", "shift": 0, "ema": False, "keep": "last"}
    model = Classifier.create(config, replace(subject.data, columns=columns))
    model.to(encoder.device)
    if method != "scratch":
        model.init_from(encoder)
    return Training(model, Columns(names), subject.validation, number)


def balanced_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count,) rows in ascending order, with classes as balanced as possible."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    counts: dict[int, int] = {}
    turns = np.empty(len(labels), np.int64)
    for row in order:  # the number of images of its class before it in `order`
        turns[row] = counts.get(labels[row], 0)
        counts[labels[row]] = turns[row] + 1
    return np.sort(order[np.argsort(turns[order], kind="stable")][:count])


def accuracy(model: Classifier, validation: Columns) -> float:
    """Accuracy on at most 10 000 validation images."""
    logits = metrics.gather(validation, model.logits, model.device)
    truth = torch.cat(list(metrics.spaced_rows(validation, "labels"))).cpu()
    return float((logits.argmax(1) == truth).double().mean())


def pretraining_result(subject: Subject, plan: list[tuple[int, str, int]], accuracies: list[float]) -> ReportResult:
    """The mean and the range over the seeds, for each method and number of labels."""
    table, series, bands = [], {name: [] for name in METHODS}, {name: [] for name in METHODS}
    counts = sorted({count for count, *_ in plan})
    for count in counts:
        for method in METHODS:
            values = [value for trial, value in zip(plan, accuracies, strict=True) if trial[:2] == (count, method)]
            mean = sum(values) / len(values)
            table.append({"labels": count, "method": method, "accuracy": mean, "lowest": min(values),
                          "highest": max(values), "error_percent": 100 * (1 - mean), "seeds": len(values)})  # fmt: skip
            series[method].append(mean)
            bands[method].append((min(values), max(values)))
    gains = {
        f"gain_{method}:{count}": series[method][place] - series["scratch"][place]
        for place, count in enumerate(counts)
        for method in METHODS[1:]
    }
    truth = torch.cat(list(metrics.spaced_rows(subject.validation, "labels")))
    facts = {"accuracy_majority": float(torch.bincount(truth).max() / len(truth)), **gains}
    helps = [count for place, count in enumerate(counts) if bands["fine_tuned"][place][0] > bands["scratch"][place][1]]
    where = f"with {' and '.join(map(str, helps))} labels" if helps else "for no number of labels"
    note = f"Every fine-tuned classifier is better than every one trained from scratch {where}."
    curve = Curve("Accuracy by labels", "labelled images", "validation accuracy", [float(n) for n in counts], series,
                  bands, log_x=True)  # fmt: skip
    return ReportResult(facts, {"accuracy": table}, [curve], notes=[note])
