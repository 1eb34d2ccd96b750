"""Auto-PGD (Croce & Hein 2020): momentum, and a step that halves when progress at a checkpoint was too small.

The L1 form (Croce & Hein 2021) moves the pixels with the largest gradient and adapts their number instead.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, wide
from models.attacks.core.run import Climb, Trial
from models.attacks.core.threat import ThreatModel
from models.capabilities import Classifies, DetectsObjects, Segments

RHO = 0.75
"""Share of steps that must have raised the loss for the step length to stay."""


def start_on_sphere(trial: Trial, purpose: object) -> Tensor:
    """A random point at the edge of the ball around each image."""
    shape = tuple(trial.x.shape[1:])
    if trial.threat.norm == "linf":
        delta = 2 * trial.draws.uniform(shape, "apgd", purpose) - 1
        delta = delta / wide(delta.abs().flatten(1).amax(1).clamp_min(TINY), delta)
    else:
        delta = trial.draws.normal(shape, "apgd", purpose)
        delta = trial.threat.geometry.steepest(delta) if trial.threat.norm == "l2" else delta
    scale = 1.0 if trial.threat.norm == "l1" else wide(trial.radius, delta)
    return trial.threat.project(trial.x, trial.x + trial.threat.masked(delta * scale))


def keep_best(trial: Trial) -> None:
    """Note where the loss has been highest, and the gradient there."""
    state = trial.state
    better = trial.value > state.top
    state.top = torch.where(better, trial.value, state.top)
    state.best = torch.where(wide(better, state.x), state.x, state.best)
    state.best_gradient = torch.where(wide(better, state.x), state.gradient, state.best_gradient)


def go_back(trial: Trial, rows: Tensor) -> None:
    """Put `rows` where their loss was highest."""
    state = trial.state
    state.x = torch.where(wide(rows, state.x), state.best, state.x)
    state.gradient = torch.where(wide(rows, state.x), state.best_gradient, state.gradient)


def begin(trial: Trial, first: Tensor, climb: Climb, offer: bool = True) -> None:
    state = trial.state
    state.x = state.old = state.best = first
    _, state.gradient = trial.slope(first, climb, offer=offer)
    state.best_gradient, state.top = state.gradient, trial.value


def ascend(trial: Trial, steps: int, first: Tensor, climb: Climb, baseline: float) -> Iterator[None]:
    """Algorithm 1. `baseline` is what the first loss is compared with when rises are counted."""
    state, threat = trial.state, trial.threat
    begin(trial, first, climb)
    state.step = 2 * trial.radius
    state.previous, state.rises = torch.full_like(state.top, baseline), torch.zeros_like(state.top)
    state.checked, state.halved = state.top, torch.ones_like(trial.done)
    period, shortest, cut, since = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03, 0))
    since = 0
    for number in range(steps):
        threat, share = trial.threat, 0.75 if number else 1.0
        drift, state.old = state.x - state.old, state.x
        aim = state.x + threat.geometry.steepest(state.gradient) * wide(state.step, state.x)
        aim = state.x + (threat.project(trial.x, aim) - state.x) * share + drift * (1 - share)
        state.x = threat.project(trial.x, aim)
        _, state.gradient = trial.slope(state.x, climb)
        state.rises, state.previous = state.rises + (trial.value > state.previous), trial.value
        keep_best(trial)
        since += 1
        if since == period:
            stuck = (state.rises <= RHO * period) | (~state.halved & (state.checked >= state.top))
            state.halved, state.checked = stuck, state.top
            state.step, state.rises = torch.where(stuck, state.step / 2, state.step), torch.zeros_like(state.rises)
            go_back(trial, stuck)
            period, since = max(period - cut, shortest), 0
        yield


def ascend_sparse(
    trial: Trial, steps: int, first: Tensor, climb: Climb, factor: float = 1.0, fresh: bool = True
) -> Iterator[None]:
    """The L1 form, in a ball `factor` times as large; only images of the true ball become candidates."""
    state, size = trial.state, trial.x[0].numel()
    begin(trial, first, climb, offer=factor == 1)
    moved = (first - trial.x).flatten(1).count_nonzero(1).float()
    state.count = torch.full_like(state.top, 0.2 * size) if fresh else moved / 1.5
    state.moved = torch.full_like(state.top, float(size)) if fresh else moved
    state.step, period = factor * trial.radius, max(int(0.04 * steps), 1)
    for number in range(1, steps + 1):
        radius = factor * trial.radius
        gradient = state.gradient.flatten(1)
        rank = (size - state.count).long().clamp(0, size - 1)
        least = gradient.abs().sort(1).values.gather(1, rank[:, None])
        signs = (gradient.sign() * (gradient.abs() >= least)).view_as(state.x)
        signs = signs / wide(signs.abs().flatten(1).sum(1).clamp_min(1), signs)
        ball: ThreatModel = trial.threat.at(radius)
        state.x = ball.project(trial.x, state.x + signs * wide(state.step, signs))
        _, state.gradient = trial.slope(state.x, climb, offer=factor == 1)
        keep_best(trial)
        if number % period == 0:
            moved = (state.best - trial.x).flatten(1).count_nonzero(1).float()
            sparser = moved / state.moved.clamp_min(1) < 0.95
            state.count, state.moved = moved / 1.5, moved
            state.step = torch.where(sparser, radius, (state.step / 1.5).clamp_min(radius / 10))
            go_back(trial, sparser)
        yield


def run_once(trial: Trial, steps: int, purpose: object, climb: Climb, baseline: float, given: bool) -> Iterator[None]:
    """One restart: from where the caller said, or at random; for L1 through balls 3 and 2 times as large first."""
    if trial.threat.norm != "l1":
        first = trial.threat.project(trial.x, trial.start) if given else start_on_sphere(trial, purpose)
        yield from ascend(trial, steps, first, climb, baseline)
        return
    trial.state.best = trial.x + trial.draws.normal(tuple(trial.x.shape[1:]), "apgd", purpose)
    third = -(-3 * steps // 10)
    for factor, share in ((3.0, third), (2.0, third), (1.0, max(steps - 2 * third, 1))):
        ball = trial.threat.at(factor * trial.radius)
        first = ball.project(trial.x, trial.state.best)
        yield from ascend_sparse(trial, share, first, climb, factor, fresh=False)


class APGD(core.Attack):
    name = "apgd"
    summary = "Gradient steps with momentum whose length adapts by itself (Croce & Hein 2020): APGD-CE and APGD-DLR"
    norms = ("linf", "l2", "l1")
    victims = (Classifies, Segments, DetectsObjects)

    forwards = "restarts * (steps + 5) + 2"
    backwards = "restarts * (steps + 5)"

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="How the perturbation is measured.")
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
        restarts: int = Field(1, ge=1, le=100, description="Runs from other starts for images that hold out.")
        loss: Literal["ce", "dlr"] = Field("ce", description="Cross-entropy, or the difference of logits ratio.")
        stop_early: bool = Field(True, description="Leave an image alone once it is adversarial.")

    def steps(self, trial: Trial) -> Iterator[None]:
        entropy = self.config.loss == "ce"

        def climb(logits: Tensor) -> Tensor:
            return trial.criterion.loss(logits) if entropy else trial.criterion.dlr(logits)

        # Cross-entropy is always above zero, so in its terms the first step always counts as a rise.
        baseline = -torch.inf if entropy else 0.0
        for restart in range(self.config.restarts):
            given = restart == 0 and trial.start is not trial.x
            yield from run_once(trial, self.config.steps, restart, climb, baseline, given)
