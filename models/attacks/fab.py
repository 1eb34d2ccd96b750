"""Fast adaptive boundary attack (Croce & Hein 2020): projections onto the linearised boundary, biased to the image."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgdt import label_and_target, target_ranks
from models.attacks.core import base as core
from models.attacks.core.hyperplane import step_to
from models.attacks.core.multi_target import copies_pay, run_targets_together
from models.attacks.core.norms import NORMS, TINY, expand_to
from models.attacks.core.run import AttackRun
from models.attacks.core.threat import SLACK
from models.attacks.criteria.classification import pick

ALPHA, ETA, BETA = 0.1, 1.05, 0.9
"""alpha_max, eta (overshoot) and beta (backward step) of the paper."""
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


class FAB(core.Attack):
    name = "fab"
    summary = "Projections onto the linearised boundary, biased towards the image (Croce & Hein 2020): FAB-T, or FAB"
    norms = ("linf", "l2", "l1")
    forwards = "max(min(targets, classes - 1), 1) * restarts * (2 * steps + 2) + 2"
    backwards = "(classes - 1) * restarts * steps"
    needs_class_scores = True
    minimal = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(100, ge=1, le=10_000, description="Projections for each target class.")
        targets: int = Field(
            9, ge=0, le=1000, description="Number of target classes to try; 0: the closest class in each step."
        )
        restarts: int = Field(1, ge=1, le=100, description="Number of runs; later ones start at random points.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        ranks = target_ranks(run, self.config.targets) if self.config.targets else (0,)
        if len(ranks) > 1 and self.config.restarts == 1 and copies_pay(run):
            yield from run_targets_together(run, len(ranks), self._towards_each)
            return
        for place in ranks:
            for restart in range(self.config.restarts):
                run.state.label, run.state.target = label_and_target(run, place)
                yield from self._approach(run, bool(place), (place, restart) if restart else None)

    def _towards_each(self, copies: AttackRun, number: Tensor) -> Iterator[None]:
        copies.state.label, copies.state.target = label_and_target(copies, number + 1)
        yield from self._approach(copies, True, None)

    def _approach(self, run: AttackRun, one_class: bool, start: object) -> Iterator[None]:
        state, norm = run.state, NORMS[run.threat.norm]
        state.x = run.x if start is None else self._random(run, start)
        for _ in range(self.config.steps):
            value, normal = self._boundary(run, one_class)
            offset = (normal * (run.x - state.x).flatten(1)).sum(1)
            both = torch.cat([state.x, run.x]).flatten(1), normal.repeat(2, 1), torch.cat([value, value + offset])
            d, d0 = step_to(*both, norm.name).view(2, *state.x.shape)
            length, length0 = norm.size(d).clamp_min(1e-8), norm.size(d0).clamp_min(1e-8)
            # alpha = min(||d|| / (||d|| + ||d_0||), alpha_max)
            # x_i+1 = clip((1 - alpha) * (x_i + eta * d) + alpha * (x_0 + eta * d_0))
            pull = expand_to((length / (length + length0)).clamp_max(ALPHA), d)
            state.x = ((state.x + ETA * d) * (1 - pull) + (run.x + ETA * d0) * pull).clamp(0, 1)
            margin = run.margin_of(run.logits(state.x))
            self._update_best(run, margin)
            # backward step of a success: x = x_0 + beta * (x - x_0)
            back = run.x + (state.x - run.x) * BETA
            state.x = torch.where(expand_to(margin < 0, back), back, state.x)
            yield

    def _boundary(self, run: AttackRun, one_class: bool) -> tuple[Tensor, Tensor]:
        """The closest linearised boundary: its value (N,) at the current point and its normal (N, D)."""
        state = run.state
        if one_class:
            gap = lambda logits: pick(logits, state.label) - pick(logits, state.target)  # noqa: E731
            _, normal = run.value_and_grad(state.x, gap, update_best=False)
            return run.value, normal.flatten(1)
        count = run.clean_logits.shape[1] - 1
        values, normals = run.jacobian(state.x, lambda logits: run.criterion.surfaces(logits, count), update_best=False)
        normals = normals.flatten(2)
        lengths = normals.norm(p=DUAL[run.threat.norm], dim=2).clamp_min(TINY)
        best = (values.abs() / lengths).argmin(1)
        rows = torch.arange(len(values), device=values.device)
        return values[rows, best], normals[rows, best]

    def _update_best(self, run: AttackRun, margin: Tensor) -> None:
        """As part of a bounded attack, only points inside the ball count."""
        if not run.minimal:
            near = run.threat.distance(run.x, run.state.x) <= run.radius * (1 + SLACK)
            margin = torch.where(near, margin, torch.inf)
        run.update_best(run.state.x, margin)

    def _random(self, run: AttackRun, purpose: object) -> Tensor:
        """Halfway to a random point at the distance of the best image so far."""
        shape, norm = tuple(run.x.shape[1:]), run.threat.geometry
        radius = torch.minimum(run.distance, run.radius.clamp_max(core.Attack.default_eps[norm.name]))
        uniform, normal = run.rng.uniform(shape, "fab", purpose), run.rng.normal(shape, "fab", purpose)
        return (run.x + run.threat.masked(norm.random_point(normal, uniform, radius)) / 2).clamp(0, 1)
