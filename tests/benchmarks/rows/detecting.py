"""Claims about detectors of adversarial images: attacks they never saw, beside squeezing, and one that knows them."""

from typing import Any

from models.reports.adversarial_detection import ADAPTIVE, AdversarialDetectionReport
from models.reports.core.base import ReportResult
from models.reports.core.base import Subject as Reported
from tests.benchmarks.claims import Found, Row, Subject, above, labelled

SEEN = ["fgsm", "pgd", "deepfool"]
UNSEEN = ["ddn", "mifgsm", "square"]


def judged(who: Reported, detector: dict[str, Any]) -> ReportResult:
    params = AdversarialDetectionReport.Params(detector=detector, methods=UNSEEN, images=100)
    steps = AdversarialDetectionReport().run(who, params)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def unseen(subject: Subject) -> Found:
    run = subject.trained("classifier", {}, share=0.5)
    who = Reported(run.model, subject.spec, subject.train, subject.validation, None, subject.seed)
    worst, told = {}, []
    for kind, settings in (("trained", {"attacks": SEEN}), ("squeezing", {})):
        found = judged(who, {"kind": kind, **settings})
        rows = {row["attack"]: row for row in found.tables["attacks"]}
        worst[kind] = min(rows[name]["auroc"] for name in UNSEEN if rows[name]["auroc"] is not None)
        told.append(
            f"{kind}: " + ", ".join(f"{name} {rows[name]['auroc']:.3f}" for name in UNSEEN if rows[name]["turned"])
            + f", random signs raise {found.facts['random_signs_suspected']:.0%} alarms, an attack that knows it turns "
            f"{rows[ADAPTIVE]['unnoticed']:.0%} unnoticed"
        )  # fmt: skip
    note = f"at eps {found.facts['eps']:.3g}; {'; '.join(told)}; {run.note}"
    return Found(worst["trained"], {"squeezing": worst["squeezing"]}, note, run.short)


TRAINED = Row(
    "detector-unseen",
    f"A detector taught by {', '.join(SEEN)} knows {', '.join(UNSEEN)}: the worst",
    "AUROC",
    above("squeezing"),
    unseen,
    suits=labelled,
)
