"""Claims about the refiner: what refined images teach, and that their labels stay true."""

from functools import partial
from typing import Any

from models.reports.core.base import Run
from models.reports.core.base import Subject as Reported
from models.reports.refinement import RefinementReport
from models.types import DataSpec
from tests.benchmarks.claims import Found, Row, Subject, Target, above, at_least

_runs: dict[tuple, tuple[dict[str, Any], str, bool]] = {}


def labelled_domains(spec: DataSpec) -> bool:
    return {"a_labels", "b_labels"} <= set(spec.columns.get("validation", {}))


def reported(subject: Subject, effort: str = "full") -> tuple[dict[str, Any], str, bool]:
    """The facts of the refinement report on one refiner of that effort, for all rows measured together."""
    key = (subject.name, subject.seed, subject.minutes, subject.images, effort)
    if key not in _runs:
        run = subject.trained("refiner", {"effort": effort}, share=0.9)
        who = Reported(run.model, subject.spec, subject.train, subject.validation, subject.validation, subject.seed)
        _runs[key] = finished(RefinementReport().run(who, RefinementReport.Params())), run.note, run.short
    return _runs[key]


def finished(run: Run) -> dict[str, Any]:
    """The facts at the end of a report."""
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value.facts


def teaches(subject: Subject, effort: str = "full") -> Found:
    facts, note, short = reported(subject, effort)
    beside = {"raw": facts["accuracy_raw"], "colour transfer": facts["accuracy_colour"], "real": facts["accuracy_real"]}
    linear = f"linear {facts['accuracy_linear_raw']:.3f} -> {facts['accuracy_linear_refined']:.3f}, "
    return Found(facts["accuracy_refined"], beside, linear + note, short)


def keeps_labels(subject: Subject, effort: str = "full") -> Found:
    facts, note, short = reported(subject, effort)
    return Found(facts["label_agreement"], {"raw": facts["label_agreement_raw"]}, note, short)


def looks_real(subject: Subject) -> Found:
    facts, note, short = reported(subject)
    linear = f"linear {facts['domain_accuracy_linear_raw']:.3f} -> {facts['domain_accuracy_linear_refined']:.3f}, "
    return Found(facts["domain_accuracy_refined"], {"raw": facts["domain_accuracy_raw"]}, linear + note, short)


TEACHES = Row(
    "refiner-teaches",
    "A small classifier that learned from refined images reads real ones",
    "accuracy",
    at_least(0.80),
    teaches,
    dataset="fontdigits-mnist",
    suits=labelled_domains,
)

KEEPS = Row(
    "refiner-keeps-labels",
    "Refined images still show what their label says, to a classifier that learned from both domains",
    "share",
    at_least(0.97),
    keeps_labels,
    dataset="fontdigits-mnist",
    suits=labelled_domains,
)

TEACHES_LESSON = Row(
    "refiner-teaches-lesson",
    "The same after a training at effort lesson: real digits are read better than after raw images",
    "accuracy",
    above("raw", 0.12),
    partial(teaches, effort="lesson"),
    dataset="fontdigits-mnist",
    suits=labelled_domains,
)

KEEPS_LESSON = Row(
    "refiner-keeps-labels-lesson",
    "The same after a training at effort lesson: refined images still show what their label says",
    "share",
    at_least(0.97),
    partial(keeps_labels, effort="lesson"),
    dataset="fontdigits-mnist",
    suits=labelled_domains,
)

REAL = Row(
    "refiner-looks-real",
    "A network tells refined images from real ones less well than raw ones",
    "accuracy",
    Target("<= (raw + .5) / 2", lambda found: found.value <= (found.baselines["raw"] + 0.5) / 2),
    looks_real,
    dataset="fontdigits-mnist",
    suits=labelled_domains,
)
