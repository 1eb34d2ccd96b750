"""The end of every run: images projected, rounded to 8-bit levels, and tested as they will be sent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.logits import as_logits, logarithm
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun
from models.attacks.core.threat import SLACK, ThreatModel

GROWTH, ROUNDS = 1.02, 40
"""A perturbation whose success was lost by rounding is lengthened by 2 % at a time, to 2.2 times its length at most."""


@dataclass(frozen=True)
class AttackResult:
    """One entry per image. `success` is that of `images`, evaluated once more; `floats` are they before rounding."""

    images: Tensor
    floats: Tensor
    success: Tensor
    success_float: Tensor
    distance: Tensor
    """Of `images`, in the norm of the threat."""
    margin: Tensor
    logits: Tensor
    clean_logits: Tensor
    queries: Tensor
    """Forward passes per image."""
    gradients: Tensor
    """Backward passes per image."""
    steps: Tensor
    initially_wrong: Tensor
    nonfinite: Tensor
    """The model's output for the clean image is not finite."""
    zero_gradient: Tensor
    """Count of gradients that were zero everywhere: a sign of masked gradients, not of robustness."""
    probabilities: Tensor
    """The model's outputs look like probabilities, not logits."""


class _FinalTest:
    """Evaluates images of a finished run on the model as it is served, and counts the queries."""

    def __init__(self, run: AttackRun, queries: Tensor):
        self.access = run.access
        self.x, self.criterion, self.threat = run.whole
        self.queries = queries

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Margins (N,) and logits of the images; one query for each of `rows` (N,) bool."""
        self.queries += rows
        outputs = self.access.exact(images)
        outputs = as_logits(outputs) if self.access.level else outputs
        margin = self.criterion.margin(outputs).nan_to_num(torch.inf, torch.inf, -torch.inf)
        return margin, outputs


def inside(threat: ThreatModel, x: Tensor, images: Tensor) -> Tensor:
    """(N,): images within the radius, up to float rounding."""
    return threat.distance(x, images) <= threat.radius(x) * (1 + SLACK) + SLACK


def finalise(run: AttackRun) -> AttackResult:
    """The result of a run after its last step."""
    results = run.results
    test = _FinalTest(run, results["queries"])
    x, threat = test.x, test.threat
    floats = threat.project(x, results["best"])
    images = threat.quantise(x, floats)
    fixed = run.wrong | run.nonfinite
    margin, logits = test(images, ~fixed)
    hit = (margin < 0) & ~fixed
    hit_float = _floats_hit(test, results, floats, images, hit, fixed)
    if threat.levels is not None:
        images, margin, logits = _repair(test, floats, images, margin, logits, hit_float & ~hit)
    distance = threat.distance(x, images)
    success = (margin < 0) & ~fixed & (distance <= threat.radius(x) * (1 + SLACK) + SLACK)
    return AttackResult(
        images=images,
        floats=floats,
        success=success,
        success_float=hit_float,
        distance=distance,
        margin=margin,
        logits=logits,
        clean_logits=logarithm(run.clean.logits, run.clean_probabilities)
        if run.any_probabilities
        else run.clean.logits,
        queries=test.queries,
        gradients=results["gradients"],
        steps=results["steps"],
        initially_wrong=run.wrong,
        nonfinite=run.nonfinite,
        zero_gradient=results["zero_gradient"],
        probabilities=run.clean_probabilities,
    )


def _floats_hit(test: _FinalTest, results: dict, floats: Tensor, images: Tensor, hit: Tensor, fixed: Tensor) -> Tensor:
    """(N,): whether the unrounded images are adversarial; queries the model only where that is not known."""
    same = (images - floats).abs().flatten(1).amax(1) <= SLACK if len(images) else hit
    if bool(same.all()):
        return hit
    evaluated = (results["best"] == floats).flatten(1).all(1) & torch.isfinite(results["margin"])
    unknown = ~same & ~evaluated & ~fixed
    answer = torch.where(same, hit, results["margin"] < 0)
    if bool(unknown.any()):
        margin, _ = test(floats, unknown)
        answer = torch.where(unknown, margin < 0, answer)
    return answer & ~fixed


def _repair(
    test: _FinalTest, floats: Tensor, images: Tensor, margin: Tensor, logits: Tensor, lost: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lengthen perturbations whose success was lost by rounding until the rounded image is adversarial again."""
    for turn in range(1, ROUNDS + 1):
        if test.access.budget is not None:
            lost = lost & (test.queries < test.access.budget)
        if not bool(lost.any()):
            break
        longer = test.threat.project(test.x, test.x + (floats - test.x) * GROWTH**turn)
        longer = test.threat.quantise(test.x, longer)
        again, scores = test(longer, lost)
        repaired = lost & (again < 0)
        images = torch.where(expand_to(repaired, images), longer, images)
        margin = torch.where(repaired, again, margin)
        logits = torch.where(expand_to(repaired, logits), scores, logits)
        lost = lost & ~repaired
    return images, margin, logits
