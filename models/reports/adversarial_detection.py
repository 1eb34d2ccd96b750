"""Can adversarial images be told from clean ones? A detector against several attacks, one of which knows of it."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.access import WhiteBox
from models.attacks.core import Attack, Eps
from models.attacks.criterion import Criterion, Misclassified
from models.attacks.cw import CW
from models.attacks.ddn import DDN
from models.attacks.deepfool import DeepFool
from models.attacks.fgsm import FGSM
from models.attacks.pgd import PGD
from models.attacks.threat import ThreatModel
from models.capabilities import Scores
from models.derived.defended import Defended, defend
from models.reports.core import Curve, Findings, Params, Progress, Report, Run, Subject
from models.reports.labelled import CHUNK, eps_for, rows_of, share

METHODS: dict[str, type[Attack]] = {attack.name: attack for attack in (FGSM, PGD, DeepFool, DDN, CW)}
ADAPTIVE = "adaptive"
POINTS = 21


class AdversarialDetectionParams(Params):
    """Which detector, against what."""

    detector: dict[str, Any] = Field(
        {"kind": "squeezing"}, description="As in POST /v1/defences. A model that has a detector is judged by its own."
    )
    methods: list[Literal[*METHODS]] = Field(
        ["fgsm", "pgd", "ddn"], min_length=1, max_length=len(METHODS), description="Attacks that know of no detector."
    )
    eps: Eps | None = Field(
        None, description="Size (linf) of fgsm, pgd and the adaptive attack. Empty: as trained against, or as is usual."
    )
    steps: int = Field(40, ge=1, le=1000, description="Gradient steps of the adaptive attack.")
    images: int = Field(200, ge=4, le=10_000, description="At most so many validation images.")


class AdversarialDetectionReport(Report):
    """The threshold is a quantile of clean images of the model's own validation data, other ones than those attacked.

    AUROC compares images that an attack turned with the same images clean. The adaptive attack (PGD) seeks images that
    are misclassified and below the threshold at once; only against it does a detector mean much.
    """

    name = "adversarial_detection"
    summary = (
        "Judges a detector of adversarial images: AUROC and hits at its threshold, also against an adaptive attack."
    )
    needs = (Scores,)
    columns = ("images", "labels")
    Params = AdversarialDetectionParams

    def run(self, subject: Subject, params: AdversarialDetectionParams, kept: Any = None) -> Run:
        model = detecting(subject, params)
        images, labels, clean = split(subject, params)
        model.calibrate(clean.cpu())
        threshold = model.threshold
        before = suspicions(model, images)
        eps = eps_for(subject, params.eps, "linf")
        names = [*params.methods, ADAPTIVE]
        rows: list[dict[str, Any]] = list(kept or [])
        rates: dict[str, list[float]] = {row["attack"]: row.pop("roc") for row in map(dict, rows)}
        rows = [{name: value for name, value in row.items() if name != "roc"} for row in rows]
        for place in range(len(rows), len(names)):
            found = []
            for start in range(0, len(images), CHUNK):
                part = slice(start, start + CHUNK)
                found.append(
                    assault(names[place], model, images[part], labels[part], eps, params, start + subject.seed)
                )
                yield Progress(place * len(images) + min(start + CHUNK, len(images)), len(names) * len(images))
            after, turned = (torch.cat(column) for column in zip(*found, strict=True))
            row, rates[names[place]] = judged(names[place], before, suspicions(model, after), turned, threshold)
            rows.append(row)
            keep = [row | {"roc": rates[row["attack"]]} for row in rows]
            yield Progress((place + 1) * len(images), len(names) * len(images), keep)
        axis = [step / (POINTS - 1) for step in range(POINTS)]
        series = {name: rate for name, rate in rates.items() if rate}
        plots = [Curve("Detection", "clean images suspected", "adversarial images suspected", axis, series)]
        facts = {"images": len(images), "detector": model.config.detector.kind, "threshold": threshold, "eps": eps}
        facts |= share("clean_suspected", int((before > threshold).sum()), len(before))
        return Findings(facts, {"attacks": rows}, plots if series else [], notes=notes(rows))


def detecting(subject: Subject, params: AdversarialDetectionParams) -> Defended:
    """The model with its own detector, or with the one that was asked for."""
    if isinstance(subject.model, Defended):
        return subject.model
    return defend(subject.model, "this", [], subject.load, detector=params.detector)


def split(subject: Subject, params: AdversarialDetectionParams) -> tuple[Tensor, Tensor, Tensor]:
    """Images to attack with their labels, and clean ones in between for the threshold."""
    images, labels = rows_of(subject, 2 * params.images)
    return images[::2][: params.images], labels[::2][: params.images], images[1::2]


def suspicions(model: Defended, images: Tensor) -> Tensor:
    return torch.cat([model.suspicion(part) for part in images.split(CHUNK)])


@dataclass(frozen=True)
class Unsuspected(Criterion):
    """Misclassified, and below the threshold: outputs are logits (N, K) and then the suspicion in the last column."""

    labels: Tensor
    threshold: float
    weight: float = 4.0

    def margin(self, logits: Tensor) -> Tensor:
        seen = (logits[:, -1] - self.threshold) / max(self.threshold, 1e-6)
        return torch.maximum(self._plain().margin(logits[:, :-1]), seen)

    def loss(self, logits: Tensor) -> Tensor:
        seen = torch.relu(logits[:, -1] / max(self.threshold, 1e-6) - 0.9)  # a little below is safer than just below
        return self._plain().loss(logits[:, :-1]) - self.weight * seen

    def check(self, logits: Tensor) -> None:
        self._plain().check(logits[:, :-1])

    def _plain(self) -> Misclassified:
        return Misclassified(self.labels)


def assault(
    name: str, model: Defended, x: Tensor, labels: Tensor, eps: float, params: AdversarialDetectionParams, seed: int
) -> tuple[Tensor, Tensor]:
    """8-bit images, and which of them are misclassified that were not before."""
    if name == ADAPTIVE:
        function = with_suspicion
        criterion: Criterion = Unsuspected(labels, model.threshold)
        attack: Attack = PGD(steps=params.steps, eps=eps)
    else:
        function, criterion = (lambda net, images: net.logits(images)), Misclassified(labels)
        kind = METHODS[name]
        attack = kind() if kind.minimal else kind(eps=eps)
    threat = ThreatModel(attack.threat().norm, attack.threat().eps, 256)
    found = attack.run(WhiteBox(model, function), x, criterion, threat, torch.arange(len(x), device=x.device) + seed)
    right = model.logits(x).argmax(1) == labels
    return found.images, right & (model.logits(found.images).argmax(1) != labels)


def with_suspicion(model: Defended, images: Tensor) -> Tensor:
    return torch.cat([model.logits(images), model.suspicion(images)[:, None]], 1)


def judged(
    name: str, before: Tensor, after: Tensor, turned: Tensor, threshold: float
) -> tuple[dict[str, Any], list[float]]:
    """A row of the table, and the hit rate at each rate of false alarms."""
    hits, clean = after[turned], before[turned]
    row: dict[str, Any] = {"attack": name, "turned": int(turned.sum()), "images": len(turned)}
    row["auroc"] = auroc(clean, hits) if len(hits) else None
    row |= share("suspected", int((hits > threshold).sum()), len(hits))
    row |= share("unnoticed", int((turned & (after <= threshold)).sum()), len(turned))
    if not len(hits):
        return row, []
    levels = before.double().quantile(torch.linspace(1, 0, POINTS, dtype=torch.float64, device=before.device))
    return row, [float((hits.double() > level).double().mean()) for level in levels]


def auroc(clean: Tensor, adversarial: Tensor) -> float:
    """The chance that an adversarial image has the higher score (Mann & Whitney); ties count half."""
    difference = adversarial.double()[:, None] - clean.double()[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def notes(rows: list[dict[str, Any]]) -> list[str]:
    adaptive = rows[-1]
    if adaptive["unnoticed"] and adaptive["unnoticed"] > 0.2:
        return [
            f"An attack that knows the detector turns {adaptive['unnoticed']:.1%} of the images unnoticed: "
            "it does not protect against whoever has the model."
        ]
    return []
