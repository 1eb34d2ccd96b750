"""Auto-PGD (Croce & Hein 2020): gradient steps with momentum whose size halves when progress was too small.

The L1 form (Croce & Hein 2021) changes the values with the largest gradient and adapts their number.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun, LossFn
from models.attacks.core.threat import ThreatModel
from models.capabilities import Classifies, DetectsObjects, Segments

RHO = 0.75
"""Fraction of steps that must increase the loss for the step size to stay."""


def start_on_sphere(run: AttackRun, purpose: object) -> Tensor:
    """A random point on the surface of the ball around each image."""
    shape = tuple(run.x.shape[1:])
    if run.threat.norm == "linf":
        delta = 2 * run.rng.uniform(shape, "apgd", purpose) - 1
        delta = delta / expand_to(delta.abs().flatten(1).amax(1).clamp_min(TINY), delta)
    else:
        delta = run.rng.normal(shape, "apgd", purpose)
        delta = run.threat.geometry.steepest(delta) if run.threat.norm == "l2" else delta
    scale = 1.0 if run.threat.norm == "l1" else expand_to(run.radius, delta)
    return run.threat.project(run.x, run.x + run.threat.masked(delta * scale))


def keep_best(run: AttackRun) -> None:
    """Record the image with the highest loss so far, and its gradient."""
    state = run.state
    better = run.value > state.top
    state.top = torch.where(better, run.value, state.top)
    state.best = torch.where(expand_to(better, state.x), state.x, state.best)
    state.best_gradient = torch.where(expand_to(better, state.x), state.gradient, state.best_gradient)


def go_back(run: AttackRun, rows: Tensor) -> None:
    """Move `rows` back to the image with their highest loss."""
    state = run.state
    state.x = torch.where(expand_to(rows, state.x), state.best, state.x)
    state.gradient = torch.where(expand_to(rows, state.x), state.best_gradient, state.gradient)


def begin(run: AttackRun, first: Tensor, loss_fn: LossFn, update_best: bool = True) -> None:
    state = run.state
    state.x = state.old = state.best = first
    _, state.gradient = run.value_and_grad(first, loss_fn, update_best=update_best)
    state.best_gradient, state.top = state.gradient, run.value


def ascend(run: AttackRun, steps: int, first: Tensor, loss_fn: LossFn, baseline: float) -> Iterator[None]:
    """Algorithm 1. The loss of the first step counts as an increase if it exceeds `baseline`."""
    state, threat = run.state, run.threat
    begin(run, first, loss_fn)
    state.step = 2 * run.radius
    state.previous, state.rises = torch.full_like(state.top, baseline), torch.zeros_like(state.top)
    state.checked, state.halved = state.top, torch.ones_like(run.done)
    period, shortest, cut, since = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03, 0))
    since = 0
    for number in range(steps):
        threat, share = run.threat, 0.75 if number else 1.0
        drift, state.old = state.x - state.old, state.x
        # z = P(x_k + eta * steepest(gradient))
        # x_k+1 = P(x_k + alpha * (z - x_k) + (1 - alpha) * (x_k - x_k-1)), alpha = 0.75
        aim = state.x + threat.geometry.steepest(state.gradient) * expand_to(state.step, state.x)
        aim = state.x + (threat.project(run.x, aim) - state.x) * share + drift * (1 - share)
        state.x = threat.project(run.x, aim)
        _, state.gradient = run.value_and_grad(state.x, loss_fn)
        state.rises, state.previous = state.rises + (run.value > state.previous), run.value
        keep_best(run)
        since += 1
        if since == period:
            # condition 1: fewer than RHO of the steps increased the loss
            # condition 2: the step size was not halved at the last checkpoint, and the maximum has not grown since
            stuck = (state.rises <= RHO * period) | (~state.halved & (state.checked >= state.top))
            state.halved, state.checked = stuck, state.top
            state.step, state.rises = torch.where(stuck, state.step / 2, state.step), torch.zeros_like(state.rises)
            go_back(run, stuck)
            period, since = max(period - cut, shortest), 0
        yield


def ascend_sparse(
    run: AttackRun, steps: int, first: Tensor, loss_fn: LossFn, factor: float = 1.0, fresh: bool = True
) -> Iterator[None]:
    """The L1 form in a ball `factor` times as large. Only images in the ball of eps become candidates."""
    state, size = run.state, run.x[0].numel()
    begin(run, first, loss_fn, update_best=factor == 1)
    changed = (first - run.x).flatten(1).count_nonzero(1).float()
    state.count = torch.full_like(state.top, 0.2 * size) if fresh else changed / 1.5
    state.changed = torch.full_like(state.top, float(size)) if fresh else changed
    state.step, period = factor * run.radius, max(int(0.04 * steps), 1)
    for number in range(1, steps + 1):
        radius = factor * run.radius
        gradient = state.gradient.flatten(1)
        rank = (size - state.count).long().clamp(0, size - 1)
        least = gradient.abs().sort(1).values.gather(1, rank[:, None])
        signs = (gradient.sign() * (gradient.abs() >= least)).view_as(state.x)
        signs = signs / expand_to(signs.abs().flatten(1).sum(1).clamp_min(1), signs)
        ball: ThreatModel = run.threat.at(radius)
        state.x = ball.project(run.x, state.x + signs * expand_to(state.step, signs))
        _, state.gradient = run.value_and_grad(state.x, loss_fn, update_best=factor == 1)
        keep_best(run)
        if number % period == 0:
            changed = (state.best - run.x).flatten(1).count_nonzero(1).float()
            sparser = changed / state.changed.clamp_min(1) < 0.95
            state.count, state.changed = changed / 1.5, changed
            state.step = torch.where(sparser, radius, (state.step / 1.5).clamp_min(radius / 10))
            go_back(run, sparser)
        yield


def run_once(
    run: AttackRun, steps: int, purpose: object, loss_fn: LossFn, baseline: float, from_caller: bool
) -> Iterator[None]:
    """One restart, from the caller's image or a random point; for L1 first in balls 3 and 2 times as large."""
    if run.threat.norm != "l1":
        first = run.threat.project(run.x, run.start) if from_caller else start_on_sphere(run, purpose)
        yield from ascend(run, steps, first, loss_fn, baseline)
        return
    run.state.best = run.x + run.rng.normal(tuple(run.x.shape[1:]), "apgd", purpose)
    third = -(-3 * steps // 10)
    for factor, share in ((3.0, third), (2.0, third), (1.0, max(steps - 2 * third, 1))):
        ball = run.threat.at(factor * run.radius)
        first = ball.project(run.x, run.state.best)
        yield from ascend_sparse(run, share, first, loss_fn, factor, fresh=False)


class APGD(core.Attack):
    name = "apgd"
    summary = "Gradient steps with momentum and an adaptive step size (Croce & Hein 2020): APGD-CE and APGD-DLR"
    norms = ("linf", "l2", "l1")
    victims = (Classifies, Segments, DetectsObjects)

    forwards = "restarts * (steps + 5) + 2"
    backwards = "restarts * (steps + 5)"

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
        restarts: int = Field(
            1, ge=1, le=100, description="Number of runs; later ones only for images not yet adversarial."
        )
        loss: Literal["ce", "dlr"] = Field(
            "ce", description="Loss: cross-entropy (ce) or difference of logits ratio (dlr)."
        )
        stop_early: bool = Field(True, description="Stop on an image once it is adversarial.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        entropy = self.config.loss == "ce"

        def loss_fn(logits: Tensor) -> Tensor:
            return run.criterion.loss(logits) if entropy else run.criterion.dlr(logits)

        # The reference compares the first loss with 0 for DLR; cross-entropy always exceeds 0.
        baseline = -torch.inf if entropy else 0.0
        for restart in range(self.config.restarts):
            from_caller = restart == 0 and run.start is not run.x
            yield from run_once(run, self.config.steps, restart, loss_fn, baseline, from_caller)
