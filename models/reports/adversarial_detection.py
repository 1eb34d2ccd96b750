"""Can adversarial images be told from clean ones? A detector against several attacks, one of which knows of it."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgd import APGD
from models.attacks.core.access import WhiteBox
from models.attacks.core.base import Attack, Eps
from models.attacks.core.norms import expand_to
from models.attacks.core.sweep import noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.attacks.criteria.detector_evasion import SelectiveLoss, UndetectedMisclassification
from models.attacks.cw import CW
from models.attacks.ddn import DDN
from models.attacks.deepfool import DeepFool
from models.attacks.fgsm import FGSM
from models.attacks.mifgsm import MIFGSM
from models.attacks.pgd import PGD
from models.attacks.square import Square
from models.capabilities import Classifies
from models.defences.defended import Defended, defend
from models.evaluation.metrics import spaced_rows
from models.reports.core.base import Curve, Findings, Params, Progress, Report, Run, Subject
from models.reports.core.classification import CHUNK, eps_for, rows_of, share, white_box

METHODS: dict[str, type[Attack]] = {a.name: a for a in (FGSM, PGD, MIFGSM, APGD, DeepFool, DDN, CW, Square)}
QUERIES = 500
ADAPTIVE = "adaptive"
POINTS = 21


class AdversarialDetectionParams(Params):
    """Which detector, against what."""

    detector: dict[str, Any] = Field(
        {"kind": "squeezing"}, description="As in POST /v1/defences. A model that has a detector is judged by its own."
    )
    methods: list[Literal[*METHODS]] = Field(
        ["fgsm", "pgd", "ddn", "square"],
        min_length=1,
        max_length=len(METHODS),
        description="Attacks that know of no detector.",
    )
    eps: Eps | None = Field(
        None,
        description="Size (linf) of bounded attacks. Empty: as the model was trained against, or as is usual.",
    )
    steps: int = Field(40, ge=1, le=1000, description="Gradient steps of the adaptive attack.")
    images: int = Field(200, ge=4, le=10_000, description="At most so many validation images.")


class AdversarialDetectionReport(Report):
    """The threshold is a quantile of clean images of the model's own validation data, other ones than those attacked.

    AUROC compares images that an attack turned with the same images clean; `learned_from` marks attacks that a trained
    detector was shown. The adaptive attack (PGD) seeks images that are misclassified and below the threshold at once;
    only against it does a detector mean much.
    """

    name = "adversarial_detection"
    summary = (
        "Judges a detector of adversarial images: AUROC and hits at its threshold, also against an adaptive attack."
    )
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = AdversarialDetectionParams
    # the adaptive attack runs twice at most, and each of its passes looks through the detector as well
    price = {
        "forwards": "min(images, (validation + 1) / 2) * (run_forwards + count_methods * (2 + look)"
        " + 2 * (steps + 3) * (1 + look) + 2 + 5 * look) + lesson_forwards",
        "backwards": "min(images, (validation + 1) / 2) * (run_backwards + 2 * steps * (1 + look)) + lesson_backwards",
    }
    settings: ClassVar[dict[str, dict[str, Any]]] = {"square": {"queries": QUERIES}}

    def run(self, subject: Subject, params: AdversarialDetectionParams, kept: Any = None) -> Run:
        images, labels, clean = split(subject, params)
        names = [*params.methods, ADAPTIVE]
        model, total = detecting(subject, params), len(names) * len(images)
        learned = model.detector.training_attacks
        if model.detector.needs_training and model is not subject.model:
            lesson = torch.cat(list(spaced_rows(subject.train, "images", model.detector.config.images)))
            for _ in model.fit_detector(lesson, subject.seed):
                yield Progress(0, total)
        model.calibrate(clean.cpu())
        before, eps = suspicions(model, images), eps_for(subject, params.eps, "linf")
        rows: list[dict[str, Any]] = list(kept or [])
        for place in range(len(rows), len(names)):
            found = []
            for start in range(0, len(images), CHUNK):
                part = slice(start, start + CHUNK)
                seed = start + subject.seed
                found.append(assault(names[place], model, images[part], labels[part], eps, params, seed))
                yield Progress(place * len(images) + min(start + CHUNK, len(images)), total)
            after, turned = (torch.cat(column) for column in zip(*found, strict=True))
            row = judged(names[place], before, suspicions(model, after), turned, model.threshold)
            rows = [*rows, row | {"learned_from": names[place] in learned}]
            yield Progress((place + 1) * len(images), total, rows)
        level, count = model.threshold, len(images)
        harmless = suspicions(model, noise(images, ThreatModel("linf", eps, 256), torch.arange(count)))
        facts = {"images": count, "detector": model.config.detector.kind, "threshold": level, "eps": eps}
        facts |= {"learned_from": learned} | share("clean_suspected", int((before > level).sum()), count)
        facts |= share("random_signs_suspected", int((harmless > level).sum()), count)
        table = [{name: value for name, value in row.items() if name != "roc"} for row in rows]
        return Findings(facts, {"attacks": table}, plots(rows), notes=notes(table))


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
    return torch.cat([model.adversarial_score(part) for part in images.split(CHUNK)])


def assault(
    name: str, model: Defended, x: Tensor, labels: Tensor, eps: float, params: AdversarialDetectionParams, seed: int
) -> tuple[Tensor, Tensor]:
    """8-bit images, and which of them are misclassified that were not before."""
    seeds, right = torch.arange(len(x), device=x.device) + seed, model.logits(x).argmax(1) == labels
    if name == ADAPTIVE:
        images = evading(model, x, labels, PGD(steps=params.steps, eps=eps), seeds)
    else:
        kind = METHODS[name]
        settings = {} if kind.minimal else {"eps": eps}
        attack = kind(**settings, **({"queries": QUERIES} if kind is Square else {}))
        threat = ThreatModel(attack.threat().norm, attack.threat().eps, 256)
        images = attack.run(white_box(model), x, Misclassified(labels), threat, seeds).images
    return images, right & (model.logits(images).argmax(1) != labels)


def evading(model: Defended, x: Tensor, labels: Tensor, attack: Attack, seeds: Tensor) -> Tensor:
    """Images of an attack that knows the detector: the sum of both ends first, and where that fails both in turns."""
    box, threat = WhiteBox(model, with_suspicion), ThreatModel("linf", attack.config.eps, 256)
    ends = labels, model.threshold, model.detector.unit
    first = attack.run(box, x, UndetectedMisclassification(*ends), threat, seeds)
    second = attack.run(box, x, SelectiveLoss(*ends), threat, seeds, skip=first.success)
    return torch.where(expand_to(first.success, x), first.images, second.images)


def with_suspicion(model: Defended, images: Tensor) -> Tensor:
    return torch.cat([model.logits(images), model.adversarial_score(images)[:, None]], 1)


def judged(name: str, before: Tensor, after: Tensor, turned: Tensor, threshold: float) -> dict[str, Any]:
    """A row of the table, with `roc`, the hit rate at each rate of false alarms."""
    hits, clean = after[turned], before[turned]
    row: dict[str, Any] = {"attack": name, "turned": int(turned.sum()), "images": len(turned)}
    row["auroc"] = auroc(clean, hits) if len(hits) else None
    row |= share("suspected", int((hits > threshold).sum()), len(hits))
    row |= share("unnoticed", int((turned & (after <= threshold)).sum()), len(turned))
    levels = before.double().quantile(torch.linspace(1, 0, POINTS, dtype=torch.float64, device=before.device))
    return row | {"roc": [float((hits.double() > level).double().mean()) for level in levels] if len(hits) else []}


def plots(rows: list[dict[str, Any]]) -> list[Curve]:
    """The receiver operating characteristic of each attack that turned an image."""
    axis = [step / (POINTS - 1) for step in range(POINTS)]
    series = {row["attack"]: row["roc"] for row in rows if row["roc"]}
    return (
        [Curve("Detection", "clean images suspected", "adversarial images suspected", axis, series)] if series else []
    )


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
