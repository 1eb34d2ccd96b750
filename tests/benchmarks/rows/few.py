"""Few images: the autoencoder beside PCA, classifiers that start from an encoder, the cost of the training monitor."""

import time
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import torch

from models.data import Columns
from models.reports.core.base import Subject as Reported
from models.reports.pretraining import PretrainingReport
from models.training.monitor import TrainingMonitor
from tests.benchmarks.claims import Found, Row, Subject, above, at_most, at_most_times, labelled

FEW, HELD = 192, 48


def few_images(subject: Subject) -> Found:
    """240 images in all, drawn without order; all else is default."""
    rows = {side: np.random.default_rng(0).permutation(len(getattr(subject, side))) for side in ("train", "validation")}
    train = Columns({"images": subject.train.columns["images"][np.sort(rows["train"][:FEW])]})
    held = Columns({"images": subject.validation.columns["images"][np.sort(rows["validation"][:HELD])]})
    columns = {"train": {"images": len(train)}, "validation": {"images": len(held)}}
    spec = replace(subject.spec, layout="plain", classes=None, columns=columns)
    run = subject.trained("autoencoder", {}, train=train, validation=held, spec=spec)
    return Found(run.measured["mse"], {"PCA": run.measured["mse_pca"]}, run.note, run.short)


FEW_PHOTOS = Row(
    "ae-few-images",
    "The default autoencoder of 240 pieces of photographs is as good as PCA with as many numbers",
    "MSE per pixel",
    at_most_times(1.05, "PCA"),
    few_images,
    dataset="photo-patches",
)


def natural(subject: Subject) -> Found:
    run = subject.trained("autoencoder", {})
    return Found(run.measured["mse"], {"PCA": run.measured["mse_pca"]}, run.note, run.short)


PHOTOS = Row(
    "ae-natural-images",
    "The default autoencoder of pieces of photographs is as good as PCA with as many numbers",
    "MSE per pixel",
    at_most_times(1.0, "PCA"),
    natural,
    dataset="photo-patches",
)

DIGITS = Row(
    "ae-default-digits", "The default autoencoder reconstructs unseen digits", "MSE per pixel", at_most(0.0052), natural
)


def hundred_labels(subject: Subject) -> Found:
    """Mean of 3 seeds with 100 labels, after half the budget went into a denoising autoencoder of all images."""
    run = subject.trained("denoising_autoencoder", {"body": "conv"}, share=0.4)
    who = Reported(run.model, subject.spec, subject.train, subject.validation, None, subject.seed)
    report = PretrainingReport()
    with torch.no_grad():
        steps = report.run(who, report.Params(labels=[100], images=3200, seeds=3))
        states = (step.progress_state for step in steps)
        accuracies = next(state for state in states if state is not None and len(state) == 9)
    scratch, probe, tuned = (sum(accuracies[place::3]) / 3 for place in range(3))
    return Found(tuned, {"from scratch": scratch, "linear probe": probe}, f"encoder: {run.note}", run.short)


LABELS = Row(
    "fine-tuned-100-labels",
    "With 100 labels a classifier that starts from a denoising encoder is better than one from scratch",
    "accuracy",
    above("from scratch", 0.02),
    hundred_labels,
    suits=labelled,
)


def monitor_cost(subject: Subject) -> Found:
    """CPU time of the inspections of a default VAE training as a share of the whole."""
    spent, inspect = [], TrainingMonitor.inspect

    def timed(*given):
        start = time.process_time()
        notices = inspect(*given)
        spent.append(time.process_time() - start)
        return notices

    with patch.object(TrainingMonitor, "inspect", timed):
        run = subject.trained("vae", {})
    return Found(sum(spent) / run.seconds, {}, f"{len(spent)} inspections, {run.note}")


MONITOR = Row(
    "doctor-cost",
    "Inspections take a small share of the time of a training",
    "of its time",
    at_most(0.02),
    monitor_cost,
)
