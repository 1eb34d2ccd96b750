"""What is an encoder worth to a classifier that has few labels? Probe and fine-tuning beside training from scratch."""

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
from models.reports.core.base import Curve, Findings, Params, Progress, Report, Run, Subject
from models.seeds import derive
from models.training.loop import Training
from models.types import DataError, DataSpec

METHODS = ("scratch", "probe", "fine_tuned")
CHUNK = 20  # updates from one sign of life to the next
SHAPE = ("latent_dim", "hidden", "width", "code")


class PretrainingParams(Params):
    """How many labels, how long and how often."""

    labels: list[int] = Field(
        [100, 1000], max_length=8, description="Numbers of labelled images to learn from; all of them come besides."
    )
    images: int = Field(12_800, ge=64, le=10**8, description="Images shown in each training, the same for all.")
    batch_size: int = Field(32, ge=2, le=1024, description="Images per update.")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="Step size at the start, the same for all.")
    seeds: int = Field(3, ge=1, le=20, description="Trainings of each kind; they differ in labels, weights and order.")


class PretrainingReport(Report):
    """All classifiers have the encoder's network and one linear layer. `scratch` starts from new weights, `probe`
    learns the last layer alone, `fine_tuned` starts from the encoder and learns everything.
    """

    name = "pretraining"
    summary = "Compares classifiers that start from an encoder with those that do not, by the number of labels."
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
            raise DataError("labels of two classes or more are needed", field="dataset")
        if data.columns["train"].get("labels", 0) < 2:
            raise DataError("two training images with labels or more are needed", field="dataset")

    def run(self, subject: Subject, params: PretrainingParams, kept: Any = None) -> Run:
        plan = list(trials(subject, params))
        found: list[float] = list(kept or [])
        updates = -(-params.images // params.batch_size)
        while len(found) < len(plan):
            count, method, seed = plan[len(found)]
            training = started(subject, params, count, method, seed)
            while training.images < training.total:
                with torch.enable_grad():
                    training.advance()
                if training.step % CHUNK == 0:
                    yield Progress(len(found) * updates + training.step, len(plan) * updates)
            found.append(accuracy(training.family.eval(), subject.validation))
            yield Progress(len(found) * updates, len(plan) * updates, list(found))
        return findings(subject, plan, found)


def trials(subject: Subject, params: PretrainingParams) -> Generator[tuple[int, str, int], None, None]:
    """(labels, method, seed) of every training. Raises DataError for a number of labels that teaches nothing."""
    every = len(subject.train.columns["labels"])
    if few := [count for count in params.labels if count < 2]:
        raise DataError(f"{few[0]} labels teach nothing; two or more are needed", field="params/labels")
    for count in sorted({*(count for count in params.labels if count < every), every}):
        for seed in range(params.seeds):
            yield from ((count, method, seed) for method in METHODS)


def started(subject: Subject, params: PretrainingParams, count: int, method: str, seed: int) -> Training:
    """A classifier at its start; of one seed all methods see the same labels in the same order."""
    encoder, number = subject.model, derive(subject.seed, "pretraining", seed)
    rows = chosen(np.asarray(subject.train.columns["labels"]), count, number)
    names = {name: np.asarray(subject.train.columns[name])[rows] for name in ("images", "labels")}
    columns = {"train": dict.fromkeys(names, count), "validation": subject.data.columns["validation"]}
    body = "conv" if encoder.config.body in CONVOLUTIONAL else encoder.config.body
    config = {name: getattr(encoder.config, name) for name in SHAPE} | {"body": body}
    config |= {"images": params.images, "batch_size": params.batch_size, "learning_rate": params.learning_rate}
    torch.manual_seed(number)
    trained = "head" if method == "probe" else "all"
    model = Classifier.create(config | {"trained": trained}, replace(subject.data, columns=columns))
    model.to(encoder.device)
    if method != "scratch":
        model.init_from(encoder)
    return Training(model, Columns(names), subject.validation, number)


def chosen(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Rows to learn from, ascending: as many of each class as there can be."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    seen: dict[int, int] = {}
    turns = np.empty(len(labels), np.int64)
    for row in order:  # the number of images of its class that come before it
        turns[row] = seen.get(labels[row], 0)
        seen[labels[row]] = turns[row] + 1
    return np.sort(order[np.argsort(turns[order], kind="stable")][:count])


def accuracy(model: Classifier, validation: Columns) -> float:
    """Over at most 10 000 validation images."""
    logits = metrics.gather(validation, model.logits, model.device)
    truth = torch.cat(list(metrics.spaced_rows(validation, "labels"))).cpu()
    return float((logits.argmax(1) == truth).double().mean())


def findings(subject: Subject, plan: list[tuple[int, str, int]], found: list[float]) -> Findings:
    """Means over the seeds with their range, a row and a point for each method and number of labels."""
    table, series, bands = [], {name: [] for name in METHODS}, {name: [] for name in METHODS}
    counts = sorted({count for count, *_ in plan})
    for count in counts:
        for method in METHODS:
            values = [value for trial, value in zip(plan, found, strict=True) if trial[:2] == (count, method)]
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
    said = f"with {' and '.join(map(str, helps))} labels" if helps else "with no number of labels"
    note = f"Every fine-tuned classifier beats every one trained from scratch {said}."
    curve = Curve("Accuracy by labels", "labelled images", "validation accuracy", [float(n) for n in counts], series,
                  bands, log_x=True)  # fmt: skip
    return Findings(facts, {"accuracy": table}, [curve], notes=[note])
