"""A detector of adversarial images against several attacks, one of them adaptive (it attacks the detector as well)."""

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
from models.capabilities import Classifies, finite_rows, misclassified, predicted_classes
from models.defences.defended import Defended, defend
from models.evaluation.metrics import spaced_rows
from models.reports.core.base import Curve, Params, Progress, Report, ReportResult, Run, Subject
from models.reports.core.classification import CHUNK, classifier_access, eps_for, labelled_images, rate

METHODS: dict[str, type[Attack]] = {a.name: a for a in (FGSM, PGD, MIFGSM, APGD, DeepFool, DDN, CW, Square)}
QUERIES = 500
ADAPTIVE = "adaptive"
POINTS = 21


class AdversarialDetectionParams(Params):
    """The detector and the attacks."""

    detector: dict[str, Any] = Field(
        {"kind": "squeezing"}, description="Detector, as in POST /v1/defences. Ignored for a model that has a detector."
    )
    methods: list[Literal[*METHODS]] = Field(
        ["fgsm", "pgd", "ddn", "square"],
        min_length=1,
        max_length=len(METHODS),
        description="Attacks on the classifier alone.",
    )
    eps: Eps | None = Field(
        None,
        description="eps (linf) of bounded attacks. Default: that of the model's adversarial training, else chosen "
        "from the images (0.3 for grey line art, else 8/255).",
    )
    steps: int = Field(40, ge=1, le=1000, description="Gradient steps of the adaptive attack.")
    images: int = Field(200, ge=4, le=10_000, description="Maximum number of validation images.")


class AdversarialDetectionReport(Report):
    """The threshold is a quantile of the scores of clean validation images, other ones than those attacked.

    AUROC compares adversarial images with the same images clean. `learned_from` marks attacks that a trained detector
    learned from. The adaptive attack (PGD) looks for images that are misclassified with a score below the threshold;
    a detector protects against an attacker who knows it only as far as it withstands this attack.
    """

    name = "adversarial_detection"
    summary = "Evaluates a detector of adversarial images: AUROC and detection rates, also against an adaptive attack."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = AdversarialDetectionParams
    # the adaptive attack runs at most twice, and each of its passes includes the detector
    price = {
        "forwards": "min(images, (validation + 1) / 2) * (2 + run_forwards + count_methods * (2 + look)"
        " + 2 * (steps + 3) * (1 + look) + 2 + 5 * look) + lesson_forwards",
        "backwards": "min(images, (validation + 1) / 2) * (run_backwards + 2 * steps * (1 + look)) + lesson_backwards",
    }
    settings: ClassVar[dict[str, dict[str, Any]]] = {"square": {"queries": QUERIES}}

    def run(self, subject: Subject, params: AdversarialDetectionParams, progress_state: Any = None) -> Run:
        images, labels, clean = split(subject, params)
        names = [*params.methods, ADAPTIVE]
        model, total = with_detector(subject, params), len(names) * len(images)
        learned = model.detector.training_attacks
        if model.detector.needs_training and model is not subject.model:
            lesson = torch.cat(list(spaced_rows(subject.train, "images", model.detector.config.images)))
            for _ in model.fit_detector(lesson, subject.seed):
                yield Progress(0, total)
        model.calibrate(clean.cpu())
        before, eps = adversarial_scores(model, images), eps_for(subject, params.eps, "linf")
        rows: list[dict[str, Any]] = list(progress_state or [])
        for place in range(len(rows), len(names)):
            parts = []
            for start in range(0, len(images), CHUNK):
                part = slice(start, start + CHUNK)
                seed = start + subject.seed
                parts.append(run_attack(names[place], model, images[part], labels[part], eps, params, seed))
                yield Progress(place * len(images) + min(start + CHUNK, len(images)), total)
            after, turned = (torch.cat(column) for column in zip(*parts, strict=True))
            row = attack_row(names[place], before, adversarial_scores(model, after), turned, model.threshold)
            rows = [*rows, row | {"learned_from": names[place] in learned}]
            yield Progress((place + 1) * len(images), total, rows)
        level, count = model.threshold, len(images)
        harmless = adversarial_scores(model, noise(images, ThreatModel("linf", eps, 256), torch.arange(count)))
        facts = {"images": count, "detector": model.config.detector.kind, "threshold": level, "eps": eps}
        facts |= {"learned_from": learned}
        for name, scores in (("clean_suspected", before), ("random_signs_suspected", harmless)):
            facts |= rate(name, int((scores > level).sum()), int(torch.isfinite(scores).sum()))
        table = [{name: value for name, value in row.items() if name != "roc"} for row in rows]
        return ReportResult(facts, {"attacks": table}, plots(rows), notes=notes(table))


def with_detector(subject: Subject, params: AdversarialDetectionParams) -> Defended:
    """The model itself if it has a detector, else with the detector of the params."""
    if isinstance(subject.model, Defended):
        return subject.model
    return defend(subject.model, "this", [], subject.load, detector=params.detector)


def split(subject: Subject, params: AdversarialDetectionParams) -> tuple[Tensor, Tensor, Tensor]:
    """Images to attack, their labels, and other clean images for the threshold, alternating in the split."""
    images, labels = labelled_images(subject, 2 * params.images)
    return images[::2][: params.images], labels[::2][: params.images], images[1::2]


def adversarial_scores(model: Defended, images: Tensor) -> Tensor:
    """(n,): the detector's scores, in chunks of CHUNK images. Some may not be finite: those are in no rate."""
    scores = torch.cat([model.adversarial_score(part) for part in images.split(CHUNK)])
    finite_rows(scores)  # counts them
    return scores


def run_attack(
    name: str, model: Defended, x: Tensor, labels: Tensor, eps: float, params: AdversarialDetectionParams, seed: int
) -> tuple[Tensor, Tensor]:
    """8-bit images of the attack, and which of them (n,) are misclassified where the clean image is not."""
    seeds, right = torch.arange(len(x), device=x.device) + seed, predicted_classes(model.logits(x)) == labels
    if name == ADAPTIVE:
        images = adaptive_attack(model, x, labels, PGD(steps=params.steps, eps=eps), seeds)
    else:
        kind = METHODS[name]
        settings = {} if kind.minimal else {"eps": eps}
        attack = kind(**settings, **({"queries": QUERIES} if kind is Square else {}))
        threat = ThreatModel(attack.threat().norm, attack.threat().eps, 256)
        images = attack.run(classifier_access(model), x, Misclassified(labels), threat, seeds).images
    return images, right & misclassified(model.logits(images), labels)


def adaptive_attack(model: Defended, x: Tensor, labels: Tensor, attack: Attack, seeds: Tensor) -> Tensor:
    """Attacks classifier and detector: the sum of both losses first, and where that fails one of the two per step."""
    box, threat = WhiteBox(model, logits_and_score), ThreatModel("linf", attack.config.eps, 256)
    goal = labels, model.threshold, model.detector.unit
    first = attack.run(box, x, UndetectedMisclassification(*goal), threat, seeds)
    second = attack.run(box, x, SelectiveLoss(*goal), threat, seeds, skip=first.success)
    return torch.where(expand_to(first.success, x), first.images, second.images)


def logits_and_score(model: Defended, images: Tensor) -> Tensor:
    """(n, classes + 1): logits, and the detector's score as the last column."""
    return torch.cat([model.logits(images), model.adversarial_score(images)[:, None]], 1)


def attack_row(name: str, before: Tensor, after: Tensor, turned: Tensor, threshold: float) -> dict[str, Any]:
    """A row of the table; `roc` holds the true positive rate at POINTS false positive rates."""
    finite = torch.isfinite(before) & torch.isfinite(after)
    before, after, turned = before[finite], after[finite], turned[finite]
    hits, clean = after[turned], before[turned]
    row: dict[str, Any] = {"attack": name, "turned": int(turned.sum()), "images": len(turned)}
    row["auroc"] = auroc(clean, hits) if len(hits) else None
    row |= rate("suspected", int((hits > threshold).sum()), len(hits))
    row |= rate("unnoticed", int((turned & (after <= threshold)).sum()), len(turned))
    levels = before.double().quantile(torch.linspace(1, 0, POINTS, dtype=torch.float64, device=before.device))
    return row | {"roc": [float((hits.double() > level).double().mean()) for level in levels] if len(hits) else []}


def plots(rows: list[dict[str, Any]]) -> list[Curve]:
    """The ROC curve of each attack that fooled the classifier at least once."""
    axis = [step / (POINTS - 1) for step in range(POINTS)]
    series = {row["attack"]: row["roc"] for row in rows if row["roc"]}
    return (
        [Curve("Detection", "clean images suspected", "adversarial images suspected", axis, series)] if series else []
    )


def auroc(clean: Tensor, adversarial: Tensor) -> float:
    """P(score of an adversarial image > score of a clean one), ties counted half (Mann & Whitney 1947)."""
    difference = adversarial.double()[:, None] - clean.double()[None]
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())


def notes(rows: list[dict[str, Any]]) -> list[str]:
    adaptive = rows[-1]
    if adaptive["unnoticed"] and adaptive["unnoticed"] > 0.2:
        return [
            f"An attack that knows the detector fools the model undetected on {adaptive['unnoticed']:.1%} of the "
            "images: the detector does not protect against an attacker who has the model."
        ]
    return []
