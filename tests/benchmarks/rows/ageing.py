"""Claims about face ageing: who is shown stays the same, and the age becomes the one asked for."""

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F

from models.data import Columns
from models.types import DataSpec
from tests.benchmarks.claims import Found, Row, Subject, Target, Trained, at_least, at_most_times

WAYS = ("z0", "pixel", "identity")
STROKES = (1.0, 2.0, 3.0, 4.0)


def with_ages(spec: DataSpec) -> bool:
    return "ages" in spec.columns.get("train", {})


_runs: dict[tuple, Trained] = {}


def aged(subject: Subject, kind: str, config: dict) -> Trained:
    """One training for all rows of a dataset that are measured together."""
    key = (kind, subject.name, subject.seed, subject.minutes, subject.images)
    if key not in _runs:
        _runs[key] = subject.trained("age_cgan", config)
    return _runs[key]


def identity_order(subject: Subject) -> Found:
    run = aged(subject, "faces", {})
    distances = {way: run.measured[f"identity_distance_{way}_same"] for way in WAYS}
    return Found(distances.pop("identity"), distances, run.note, run.short)


def kept(subject: Subject) -> Found:
    run = aged(subject, "faces", {})
    beside = {name: run.measured[f"identity_distance_{name}"] for name in ("nearest", "mean")}
    return Found(run.measured["identity_distance_identity"], beside, run.note, run.short)


def age_right(subject: Subject) -> Found:
    run = aged(subject, "faces", {})
    beside = {name: run.measured[f"age_agreement_{name}"] for name in ("copy", "nearest", "mean")}
    note = f"of unseen real images {run.measured['age_accuracy']:.2f}; "
    return Found(run.measured["age_agreement_identity"], beside, note + run.note, run.short)


ORDER = Row(
    "age-identity-order",
    "Age-cGAN: the search for identity keeps a face better than that for pixels, and that better than the encoder",
    "1 - cosine",
    Target(
        "z0 > pixel > identity",
        lambda found: found.baselines["z0"] > found.baselines["pixel"] > found.value,
    ),
    identity_order,
    dataset="openmoji-people",
    suits=with_ages,
)

KEPT = Row(
    "age-identity-kept",
    "Age-cGAN: a face shown at every age is nearer to itself than the nearest training face of that age",
    "1 - cosine",
    at_most_times(1.0, "nearest"),
    kept,
    dataset="openmoji-people",
    suits=with_ages,
)

AGE = Row(
    "age-group-right",
    "Age-cGAN: a frozen classifier reads the age that was asked for",
    "share",
    at_least(0.9),
    age_right,
    dataset="openmoji-people",
    suits=with_ages,
)


@lru_cache
def drawn_thick(name: str, subject_columns: tuple[Columns, Columns]) -> tuple[Columns, Columns]:
    """Digits in four widths of their strokes, which stand for ages; every image is an identity of its own."""
    return tuple(_thick(columns, start) for columns, start in zip(subject_columns, (0, 1 << 20), strict=True))


def _thick(columns: Columns, start: int) -> Columns:
    images = torch.from_numpy(columns.columns["images"][:1000].copy()).float()
    thin = -F.max_pool2d(-images, 2, 1, 1)[..., :-1, :-1]
    bold = F.max_pool2d(images, 2, 1, 1)[..., :-1, :-1]
    fat = F.max_pool2d(images, 3, 1, 1)
    every = torch.cat([thin, images, bold, fat]).byte().numpy()
    ages = torch.tensor(STROKES).repeat_interleave(len(images)).numpy()
    identities = (torch.arange(len(images)).repeat(len(STROKES)) + start).numpy()
    return Columns({"images": every, "ages": ages, "identities": identities})


class Strokes(Subject):
    """The subject's digits in four widths of their strokes."""

    @property
    def _both(self) -> tuple[Columns, Columns]:
        return drawn_thick(self.name, (super().train, super().validation))

    @property
    def train(self) -> Columns:
        return self._both[0]

    @property
    def validation(self) -> Columns:
        return self._both[1]

    @property
    def spec(self) -> DataSpec:
        rows = {"train": {"images": len(self.train), "ages": len(self.train)}, "validation": {"images": 1}}
        return replace(super().spec, layout="attributes", columns=rows, ages=STROKES, identities=len(self.train) // 4)


def strokes(subject: Subject) -> Found:
    given = Strokes(subject.name, subject.source, subject.seed, subject.minutes, subject.images, subject.started)
    run = aged(given, "strokes", {})
    ages = f"age right {run.measured['age_agreement_identity']:.2f}; "
    distances = {way: run.measured[f"identity_distance_{way}_same"] for way in WAYS}
    return Found(distances.pop("identity"), distances, ages + run.note, run.short)


STROKE = Row(
    "age-strokes",
    "Digits whose stroke width stands for age: the search for identity halves the encoder's identity loss",
    "1 - cosine",
    at_most_times(0.5, "z0"),
    strokes,
    suits=lambda spec: spec.shape == (1, 28, 28) and spec.layout in ("plain", "labelled"),
)
