"""How much robustness can be proved? Certified accuracy of a model under noise, beside what attacks achieve."""

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
from models.reports.core.base import Curve, Findings, Params, Progress, Report, Run, Subject
from models.reports.core.classification import CHUNK, rows_of, share, white_box
from models.seeds import derive

POINTS, ATTACKS = 33, 6
BEYOND = 4
"""Attacks go so many times farther than any certificate: there the curves of both fall."""
VOTES = 200
"""Noisy copies that decide what the smoothed model answers to an attacked image."""


class SmoothingParams(Params):
    """The noise, the votes, and how hard to attack beside."""

    sigma: float | None = Field(
        None, gt=0, le=4, description="Noise. Empty: that of a model defended by noise, else 0.25."
    )
    n: int = Field(500, ge=10, le=100_000, description="Noisy copies of each image that measure the share.")
    n0: int = Field(50, ge=1, le=10_000, description="Noisy copies before them that choose the answer.")
    alpha: float = Field(0.001, gt=0, lt=0.5, description="Chance that the radius of an image is too large.")
    images: int = Field(100, ge=2, le=10_000, description="Validation images to certify.")
    attacked: int = Field(32, ge=0, le=1000, description="How many of them to attack as well; 0: none.")
    steps: int = Field(20, ge=1, le=1000, description="Gradient steps of the attack on the smoothed model.")
    draws: int = Field(8, ge=1, le=256, description="Noisy copies averaged in each of its steps.")


class SmoothingReport(Report):
    """Certified accuracy at a radius is a lower bound of what any l2 attack leaves, an attack an upper one.

    The smoothed model answers by vote and may abstain, which counts as an error. It is attacked by PGD through the
    mean of noisy answers; the model without noise by DDN, which seeks the smallest perturbation.
    """

    name = "smoothing"
    summary = "Certified accuracy over the l2 radius (randomised smoothing), beside accuracy under attack."
    needs = (Classifies,)
    columns = ("images", "labels")
    Params = SmoothingParams
    # copies are asked about 64 at a time; 104 and 101 are those of DDN
    price = {
        "forwards": "images * (n + n0 + 126) + min(attacked, images) * (104 + 7 * 256 + 6 * (steps + 3) * draws)",
        "backwards": "min(attacked, images) * (101 + 6 * steps * draws)",
    }

    def run(self, subject: Subject, params: SmoothingParams, kept: Any = None) -> Run:
        images, labels = rows_of(subject, params.images)
        sigma, voter = voter_of(subject.model, params.sigma)
        classes, attacked = len(subject.data.classes), min(params.attacked, len(images))
        cost = params.n + params.n0
        total = len(images) * cost + attacked * ATTACKS * params.steps * params.draws
        rows: list[dict[str, Any]] = list(kept or [])
        for index in range(len(rows), len(images)):
            seed = torch.tensor(derive(subject.seed, "certify", index), device=images.device)
            first, votes = (
                count_votes(voter, images[index], sigma, seed, count, classes, what)[None]
                for what, count in (("first", params.n0), ("votes", params.n))
            )
            guess, radius, least = (float(value) for value in certify(first, votes, sigma, params.alpha))
            about = {"image": index, "label": int(labels[index]), "answer": int(guess) if guess >= 0 else None}
            rows.append(about | {"radius": radius if guess >= 0 else 0.0, "share_at_least": least})
            yield Progress((index + 1) * cost, total, list(rows))
        top = BEYOND * max([row["radius"] for row in rows] + [sigma])
        radii = [top * step / (POINTS - 1) for step in range(POINTS)]
        proved = [sum(holds(row, radius) for row in rows) for radius in radii]
        series = {"certified": [hits / len(rows) for hits in proved]}
        bands = {"certified": [wilson(hits, len(rows)) for hits in proved]}
        attacks: list[dict[str, Any]] = []
        if attacked:
            plain, table = yield from assault(subject, params, images[:attacked], labels[:attacked], top, total)
            attacks = table
            for name, at in {"attacked": table, "attacked without noise": None}.items():
                hits = [plain(radius) for radius in radii] if at is None else [left(table, radius) for radius in radii]
                series[name] = [count / attacked for count in hits]
                bands[name] = [wilson(count, attacked) for count in hits]
        plot = Curve("Certified and attacked accuracy", "l2 radius", "accuracy", radii, series, bands)
        found = facts(rows, sigma, params)
        return Findings(found, {"images": rows, "attacks": attacks}, [plot], notes=notes(rows, attacks, attacked))


def holds(row: dict[str, Any], radius: float) -> bool:
    """Whether the image is certified to be answered rightly at the radius."""
    return row["answer"] == row["label"] and row["radius"] >= radius


def facts(rows: list[dict[str, Any]], sigma: float, params: SmoothingParams) -> dict[str, Any]:
    right = sum(holds(row, 0) for row in rows)
    found = {"images": len(rows), "sigma": sigma, "n": params.n, "alpha": params.alpha}
    found |= share("accuracy_smoothed", right, len(rows))
    found["abstained"] = sum(row["answer"] is None for row in rows) / len(rows)
    found["mean_certified_radius"] = sum(row["radius"] for row in rows if holds(row, 0)) / len(rows)
    for radius in (0.25, 0.5, 1.0):
        found |= share(f"certified_{radius}", sum(holds(row, radius) for row in rows), len(rows))
    return found


def smoothed(subject: Subject, sigma: float, draws: int) -> Family:
    """The model with noise in front, as attacks see it."""
    model = subject.model
    if isinstance(model, Defended) and model.sigma == sigma:
        return model
    return defend(model, "this", [{"kind": "noise", "sigma": sigma}], subject.load, draws=draws)


def assault(subject: Subject, params: SmoothingParams, images: Tensor, labels: Tensor, top: float, total: int):
    """(accuracy without noise as a function of the radius, rows of the smoothed one): images right, out of those given.

    An image once turned stays turned at larger radii.
    """
    sigma, voter = voter_of(subject.model, params.sigma)
    seeds = torch.arange(len(images), device=images.device) + subject.seed
    base = subject.model.base if isinstance(subject.model, Defended) else subject.model
    one = DDN().run(white_box(base), images, Misclassified(labels), ThreatModel("l2", None), seeds)
    distances = torch.where(one.initially_wrong, 0.0, torch.where(one.success, one.distance, torch.inf))
    model, done = smoothed(subject, sigma, params.draws), total - len(images) * ATTACKS * params.steps * params.draws
    right = answers(voter, images, sigma, seeds, len(subject.data.classes), params.alpha) == labels
    table = [{"radius": 0.0, "right": int(right.sum())}]
    attack = PGD(norm="l2", steps=params.steps, stop_early=False)
    for step in range(1, ATTACKS + 1):
        radius = top * step / ATTACKS
        for part in right.nonzero()[:, 0].split(CHUNK):
            threat = ThreatModel("l2", radius)
            found = attack.run(white_box(model), images[part], Misclassified(labels[part]), threat, seeds[part]).images
            turned = answers(voter, found, sigma, seeds[part], len(subject.data.classes), params.alpha)
            right[part] &= turned == labels[part]
        table.append({"radius": radius, "right": int(right.sum())})
        done += len(images) * params.steps * params.draws
        yield Progress(done, total)
    return (lambda radius: int((distances > radius).sum())), table


def answers(voter, images: Tensor, sigma: float, seeds: Tensor, classes: int, alpha: float) -> Tensor:
    """(n,): what the smoothed model answers, ABSTAINED where the vote is not clear."""
    votes = [
        count_votes(voter, image, sigma, seed, VOTES, classes, "answer")
        for image, seed in zip(images, seeds, strict=True)
    ]
    return vote(torch.stack(votes), alpha) if votes else torch.empty(0, dtype=torch.int64) + ABSTAINED


def left(table: list[dict[str, Any]], radius: float) -> int:
    """Right answers at a radius: as many as at the largest attacked radius up to it."""
    return next(row["right"] for row in reversed(table) if row["radius"] <= radius + 1e-9)


def notes(rows: list[dict[str, Any]], attacks: list[dict[str, Any]], attacked: int) -> list[str]:
    """A certificate that an attack breaks is a fault of this program, or the chance of alpha."""
    found = ["Radii hold for the smoothed model, which answers by vote; of the model without noise they say nothing."]
    for row in attacks:
        proved = sum(holds(one, row["radius"]) for one in rows[:attacked])
        if row["right"] < proved:
            found.append(
                f"At l2 {row['radius']:.3g} an attack left {row['right']} images right of {proved} certified: more "
                "votes are needed for one of the two numbers."
            )
    return found
