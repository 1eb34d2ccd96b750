"""The end of every run: images put inside the threat, rounded to their levels, tested as they will be sent."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.attacks.core.logits import as_logits, logarithm
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun
from models.attacks.core.threat import SLACK, ThreatModel

GROWTH, ROUNDS = 1.02, 40
"""A success that rounding undid is pushed on by 2 % at a time, at most to 2.2 times its length."""


@dataclass(frozen=True)
class AttackResult:
    """One entry per image. `success` is that of `images`, tested once more; `floats` is what they were rounded from."""

    images: Tensor
    floats: Tensor
    success: Tensor
    success_float: Tensor
    distance: Tensor
    """In the norm of the threat, of `images`."""
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
    """The model had no finite answer for the clean image."""
    zero_gradient: Tensor
    """Gradients that were zero everywhere: a sign that gradients are masked, not that the model is robust."""
    probabilities: Tensor
    """The model seems to give probabilities, not logits."""


class _Judge:
    """Tests images of a finished run on the model as it is served, and counts it."""

    def __init__(self, run: AttackRun, queries: Tensor):
        self.access = run.access
        self.x, self.criterion, self.threat = run.whole
        self.queries = queries

    def __call__(self, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Margins and logits of the images; one query for each of `rows`."""
        self.queries += rows
        outputs = self.access.exact(images)
        outputs = as_logits(outputs) if self.access.level else outputs
        margin = self.criterion.margin(outputs).nan_to_num(torch.inf, torch.inf, -torch.inf)
        return margin, outputs


def inside(threat: ThreatModel, x: Tensor, images: Tensor) -> Tensor:
    """(N,): the images within the radius, up to float rounding."""
    return threat.distance(x, images) <= threat.radius(x) * (1 + SLACK) + SLACK


def finalise(run: AttackRun) -> AttackResult:
    """The result of a run whose steps are over."""
    found = run.found
    judge = _Judge(run, found["queries"])
    x, threat = judge.x, judge.threat
    floats = threat.project(x, found["best"])
    images = threat.quantise(x, floats)
    fixed = run.wrong | run.nonfinite
    margin, logits = judge(images, ~fixed)
    hit = (margin < 0) & ~fixed
    hit_float = _floats_hit(judge, found, floats, images, hit, fixed)
    if threat.levels is not None:
        images, margin, logits = _repair(judge, floats, images, margin, logits, hit_float & ~hit)
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
        queries=judge.queries,
        gradients=found["gradients"],
        steps=found["steps"],
        initially_wrong=run.wrong,
        nonfinite=run.nonfinite,
        zero_gradient=found["zero_gradient"],
        probabilities=run.clean_probabilities,
    )


def _floats_hit(judge: _Judge, found: dict, floats: Tensor, images: Tensor, hit: Tensor, fixed: Tensor) -> Tensor:
    """Whether the unrounded images are adversarial; asks the model only where nothing says so yet."""
    same = (images - floats).abs().flatten(1).amax(1) <= SLACK if len(images) else hit
    if bool(same.all()):
        return hit
    known = (found["best"] == floats).flatten(1).all(1) & torch.isfinite(found["margin"])
    unknown = ~same & ~known & ~fixed
    answer = torch.where(same, hit, found["margin"] < 0)
    if bool(unknown.any()):
        margin, _ = judge(floats, unknown)
        answer = torch.where(unknown, margin < 0, answer)
    return answer & ~fixed


def _repair(
    judge: _Judge, floats: Tensor, images: Tensor, margin: Tensor, logits: Tensor, undone: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scale perturbations whose success rounding undid until the rounded image is adversarial again."""
    for turn in range(1, ROUNDS + 1):
        if judge.access.budget is not None:
            undone = undone & (judge.queries < judge.access.budget)
        if not bool(undone.any()):
            break
        longer = judge.threat.project(judge.x, judge.x + (floats - judge.x) * GROWTH**turn)
        longer = judge.threat.quantise(judge.x, longer)
        again, scores = judge(longer, undone)
        mended = undone & (again < 0)
        images = torch.where(expand_to(mended, images), longer, images)
        margin = torch.where(mended, again, margin)
        logits = torch.where(expand_to(mended, logits), scores, logits)
        undone = undone & ~mended
    return images, margin, logits
