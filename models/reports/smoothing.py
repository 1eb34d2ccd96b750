"""Randomised smoothing (Cohen et al. 2019): certified accuracy, and accuracy under attack."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified
from models.attacks.ddn import DDN
from models.attacks.pgd import PGD
from models.capabilities import Classifies
from models.defences.defended import Defended, defend
from models.defences.randomized_smoothing import ABSTAINED, certify, count_votes, vote, voter_of
from models.evaluation.confidence import wilson
from models.family import Family
from models.reports.core.base import Curve, Params, Progress, Report, ReportResult, Run, Subject
from models.reports.core.classification import CHUNK, classifier_access, labelled_images, rate
from models.seeds import derive

POINTS, ATTACKS = 33, 6
MAX_RADIUS = 4
"""Largest attacked radius, as a multiple of the largest certified one; there both curves have dropped."""
VOTES = 200
"""Noisy copies for the smoothed prediction of an attacked image."""


class SmoothingParams(Params):
    """The noise, the votes, and the attack."""

    sigma: float | None = Field(
        None,
        gt=0,
        le=4,
        description="Standard deviation of the noise, for pixels in [0, 1]. Default: that of a model defended by "
        "noise, else 0.25.",
    )
    n: int = Field(
        500, ge=10, le=100_000, description="Noisy copies of each image that estimate the probability of its class."
    )
    n0: int = Field(50, ge=1, le=10_000, description="Noisy copies of each image that select its class.")
    alpha: float = Field(0.001, gt=0, lt=0.5, description="Probability that a certified radius is too large.")
    images: int = Field(100, ge=2, le=10_000, description="Maximum number of validation images to certify.")
    attacked: int = Field(32, ge=0, le=1000, description="Number of them to attack as well; 0: none.")
    steps: int = Field(20, ge=1, le=1000, description="Gradient steps of the attack on the smoothed model.")
    draws: int = Field(8, ge=1, le=256, description="Noisy copies averaged in each step of the attack.")


class SmoothingReport(Report):
    """Certified accuracy is a lower bound of the robust accuracy at an l2 radius; accuracy under attack, an upper one.

    The smoothed model predicts by majority vote and may abstain, which counts as an error. PGD attacks it through the
    mean of noisy predictions; DDN, a minimum-norm attack, attacks the model without noise.
    """

    name = "smoothing"
    summary = "Certified accuracy over the l2 radius (randomised smoothing), and accuracy under attack."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = SmoothingParams
    # batches of 64 copies; 104 and 101 are the passes of DDN
    price = {
        "forwards": "images * (n + n0 + 127) + min(attacked, images) * (104 + 7 * 256 + 6 * (steps + 3) * draws)",
        "backwards": "min(attacked, images) * (101 + 6 * steps * draws)",
    }

    def run(self, subject: Subject, params: SmoothingParams, progress_state: Any = None) -> Run:
        images, labels = labelled_images(subject, params.images)
        sigma, voter = voter_of(subject.model, params.sigma)
        classes, attacked = len(subject.data.classes), min(params.attacked, len(images))
        cost = params.n + params.n0
        total = len(images) * cost + attacked * ATTACKS * params.steps * params.draws
        rows: list[dict[str, Any]] = list(progress_state or [])
        for index in range(len(rows), len(images)):
            seed = torch.tensor(derive(subject.seed, "certify", index), device=images.device)
            first, votes = (
                count_votes(voter, images[index], sigma, seed, count, classes, purpose)[None]
                for purpose, count in (("first", params.n0), ("votes", params.n))
            )
            answer, radius, lower = (float(value) for value in certify(first, votes, params.n, sigma, params.alpha))
            row = {"image": index, "label": int(labels[index]), "answer": int(answer) if answer >= 0 else None}
            rows.append(row | {"radius": radius if answer >= 0 else 0.0, "share_at_least": lower})
            yield Progress((index + 1) * cost, total, list(rows))
        top = MAX_RADIUS * max([row["radius"] for row in rows] + [sigma])
        radii = [top * step / (POINTS - 1) for step in range(POINTS)]
        certified = [sum(certified_at(row, radius) for row in rows) for radius in radii]
        series = {"certified": [hits / len(rows) for hits in certified]}
        bands = {"certified": [wilson(hits, len(rows)) for hits in certified]}
        attacks: list[dict[str, Any]] = []
        if attacked:
            counts_without_noise, attacks = yield from run_attacks(
                subject, params, images[:attacked], labels[:attacked], top, total
            )
            hits = {"attacked": [right_at(attacks, radius) for radius in radii]}
            hits["attacked without noise"] = [counts_without_noise(radius) for radius in radii]
            for name, counts in hits.items():
                series[name] = [count / attacked for count in counts]
                bands[name] = [wilson(count, attacked) for count in counts]
        plot = Curve("Certified and attacked accuracy", "l2 radius", "accuracy", radii, series, bands)
        facts = summarise(rows, sigma, params)
        return ReportResult(facts, {"images": rows, "attacks": attacks}, [plot], notes=notes(rows, attacks, attacked))


def certified_at(row: dict[str, Any], radius: float) -> bool:
    """Whether the correct class of the image is certified at the radius."""
    return row["answer"] == row["label"] and row["radius"] >= radius


def summarise(rows: list[dict[str, Any]], sigma: float, params: SmoothingParams) -> dict[str, Any]:
    """Accuracy of the smoothed model, abstentions, mean certified radius, and certified accuracy at three radii."""
    right = sum(certified_at(row, 0) for row in rows)
    facts = {"images": len(rows), "sigma": sigma, "n": params.n, "alpha": params.alpha}
    facts |= rate("accuracy_smoothed", right, len(rows))
    facts["abstained"] = sum(row["answer"] is None for row in rows) / len(rows)
    facts["mean_certified_radius"] = sum(row["radius"] for row in rows if certified_at(row, 0)) / len(rows)
    for radius in (0.25, 0.5, 1.0):
        facts |= rate(f"certified_{radius}", sum(certified_at(row, radius) for row in rows), len(rows))
    return facts


def smoothed(subject: Subject, sigma: float, draws: int) -> Family:
    """The model with noise in front, averaged over `draws`, as PGD attacks it."""
    model = subject.model
    if isinstance(model, Defended) and model.sigma == sigma:
        return model
    return defend(model, "this", [{"kind": "noise", "sigma": sigma}], subject.load, draws=draws)


def run_attacks(subject: Subject, params: SmoothingParams, images: Tensor, labels: Tensor, top: float, total: int):
    """(correct images without noise as a function of the radius, a row of correct images per radius with noise).

    An image that is misclassified at one radius counts as misclassified at all larger ones.
    """
    sigma, voter = voter_of(subject.model, params.sigma)
    seeds = torch.arange(len(images), device=images.device) + subject.seed
    base = subject.model.base if isinstance(subject.model, Defended) else subject.model
    result = DDN().run(classifier_access(base), images, Misclassified(labels), ThreatModel("l2", None), seeds)
    distances = torch.where(result.initially_wrong, 0.0, torch.where(result.success, result.distance, torch.inf))
    model = smoothed(subject, sigma, params.draws)
    work_done = total - len(images) * ATTACKS * params.steps * params.draws
    classes = len(subject.data.classes)
    right = smoothed_predictions(voter, images, sigma, seeds, classes, params.alpha) == labels
    table = [{"radius": 0.0, "right": int(right.sum())}]
    attack = PGD(norm="l2", steps=params.steps, stop_early=False)
    for step in range(1, ATTACKS + 1):
        radius = top * step / ATTACKS
        for part in right.nonzero()[:, 0].split(CHUNK):
            threat = ThreatModel("l2", radius)
            adversarial = attack.run(
                classifier_access(model), images[part], Misclassified(labels[part]), threat, seeds[part]
            ).images
            answers = smoothed_predictions(voter, adversarial, sigma, seeds[part], classes, params.alpha)
            right[part] &= answers == labels[part]
        table.append({"radius": radius, "right": int(right.sum())})
        work_done += len(images) * params.steps * params.draws
        yield Progress(work_done, total)
    return (lambda radius: int((distances > radius).sum())), table


def smoothed_predictions(voter, images: Tensor, sigma: float, seeds: Tensor, classes: int, alpha: float) -> Tensor:
    """(n,): classes predicted by the smoothed model, ABSTAINED where the vote is not significant."""
    votes = [
        count_votes(voter, image, sigma, seed, VOTES, classes, "answer")
        for image, seed in zip(images, seeds, strict=True)
    ]
    return vote(torch.stack(votes), alpha) if votes else torch.empty(0, dtype=torch.int64) + ABSTAINED


def right_at(table: list[dict[str, Any]], radius: float) -> int:
    """Correct images at a radius: those at the largest attacked radius up to it."""
    return next(row["right"] for row in reversed(table) if row["radius"] <= radius + 1e-9)


def notes(rows: list[dict[str, Any]], attacks: list[dict[str, Any]], attacked: int) -> list[str]:
    """Notes. An attack that leaves fewer images correct than are certified contradicts one of the two numbers."""
    sentences = [
        "Radii hold for the smoothed model, which predicts by vote; they say nothing about the model without noise."
    ]
    for row in attacks:
        certified = sum(certified_at(image, row["radius"]) for image in rows[:attacked])
        if row["right"] < certified:
            sentences.append(
                f"At l2 {row['radius']:.3g} an attack leaves {row['right']} images correct, but {certified} are "
                "certified: raise n, or lower alpha."
            )
    return sentences
