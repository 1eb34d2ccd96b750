"""Brightness: what it does to a sparse autoencoder, and what a regressor makes of it."""

from dataclasses import replace

import numpy as np

from models.data import Columns
from tests.benchmarks.claims import Found, Row, Subject, at_most, at_most_times

FEW, HELD = 96, 24


def bright_grounds(subject: Subject) -> Found:
    """All defaults, on the images inverted where they are dark."""
    sides = [np.array(side.columns["images"]) for side in (subject.train, subject.validation)]
    if sides[0].mean() < 127.5:
        sides = [255 - images for images in sides]
    train, held = (Columns({"images": images}) for images in sides)
    columns = {"train": {"images": len(train)}, "validation": {"images": len(held)}}
    spec = replace(subject.spec, layout="plain", classes=None, columns=columns)
    run = subject.trained("sparse_autoencoder", {}, train=train, validation=held, spec=spec)
    units, l0 = run.model.latent_dim, run.measured["l0"]
    error = {"PCA of l0 axes": run.measured["mse_pca"], "mean image": run.measured["mse_mean_image"]}
    said = f"{units} units, l0 {l0:.0f}, MSE {run.measured['mse']:.5f}"
    said += "".join(f", {name} {value:.5f}" for name, value in error.items())
    return Found(run.measured["dead_units"] / units, {}, f"{said}; {run.note}", run.short)


SPARSE = Row(
    "sparse-bright",
    "On bright grounds the units of a default sparse autoencoder stay alive",
    "share of dead units",
    at_most(0.02),
    bright_grounds,
)


def brightness(subject: Subject) -> Found:
    """The target is the mean of the pixels, from 0 to 255."""
    splits = []
    for side, count in ((subject.train, FEW), (subject.validation, HELD)):
        images = np.array(side.columns["images"])
        images = images[np.random.default_rng(0).permutation(len(images))[:count]]
        splits.append(Columns({"images": images, "targets": images.mean((1, 2, 3)).astype(np.float32)}))
    train, held = splits
    columns = {"train": dict.fromkeys(train.columns, len(train)), "validation": dict.fromkeys(held.columns, len(held))}
    spec = replace(subject.spec, layout="attributes", classes=None, columns=columns)
    run = subject.trained("regressor", {}, train=train, validation=held, spec=spec)
    baselines = {"ridge on pixels": run.measured["mae_linear"], "mean target": run.measured["mae_mean"]}
    return Found(run.measured["mae"], baselines, f"{len(train)} images; {run.note}", run.short)


REGRESSOR = Row(
    "regressor-brightness",
    "From 96 images a default regressor learns how bright they are, no worse than a linear model",
    "mean error of 0 to 255",
    at_most_times(1.0, "ridge on pixels"),
    brightness,
)
