"""Fast adaptive boundary attack (Croce & Hein 2020): project onto the linearised boundary, with a pull to the image."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgdt import likely, places
from models.attacks.core import base as core
from models.attacks.core.hyperplane import step_to
from models.attacks.core.multi_target import copies_pay, run_targets_together
from models.attacks.core.norms import NORMS, TINY, expand_to
from models.attacks.core.run import AttackRun
from models.attacks.core.threat import SLACK
from models.attacks.criteria.classification import pick

ALPHA, ETA, BETA = 0.1, 1.05, 0.9
"""Largest pull to the image, overshoot over the boundary, and how far a success is drawn back (paper, section 4)."""
DUAL = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}


class FAB(core.Attack):
    name = "fab"
    summary = "Projections onto the linearised boundary, kept close to the image (Croce & Hein 2020): FAB-T, or FAB"
    norms = ("linf", "l2", "l1")
    forwards = "max(min(targets, classes - 1), 1) * restarts * (2 * steps + 2) + 2"
    backwards = "(classes - 1) * restarts * steps"
    needs_class_scores = True
    minimal = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="How the perturbation is measured.")
        steps: int = Field(100, ge=1, le=10_000, description="Projections, towards each class.")
        targets: int = Field(9, ge=0, le=1000, description="Classes to try in turn; 0: the nearest of all each time.")
        restarts: int = Field(1, ge=1, le=100, description="Runs, the second and later ones from random points.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        tried = places(run, self.config.targets) if self.config.targets else (0,)
        if len(tried) > 1 and self.config.restarts == 1 and copies_pay(run):
            yield from run_targets_together(run, len(tried), self._beside)
            return
        for place in tried:
            for restart in range(self.config.restarts):
                run.state.label, run.state.target = likely(run, place)
                yield from self._approach(run, bool(place), (place, restart) if restart else None)

    def _beside(self, copies: AttackRun, number: Tensor) -> Iterator[None]:
        copies.state.label, copies.state.target = likely(copies, number + 1)
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
            pull = expand_to((length / (length + length0)).clamp_max(ALPHA), d)
            state.x = ((state.x + ETA * d) * (1 - pull) + (run.x + ETA * d0) * pull).clamp(0, 1)
            margin = run.margin_of(run.logits(state.x))
            self._update_best(run, margin)
            back = run.x + (state.x - run.x) * BETA
            state.x = torch.where(expand_to(margin < 0, back), back, state.x)
            yield

    def _boundary(self, run: AttackRun, one_class: bool) -> tuple[Tensor, Tensor]:
        """The nearest linearised boundary: its value (N,) at the present point and its normal (N, D)."""
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
        """Inside a bounded attack only points of the ball count."""
        if not run.minimal:
            near = run.threat.distance(run.x, run.state.x) <= run.radius * (1 + SLACK)
            margin = torch.where(near, margin, torch.inf)
        run.update_best(run.state.x, margin)

    def _random(self, run: AttackRun, purpose: object) -> Tensor:
        """Halfway to a random point as far away as the best one so far."""
        shape, norm = tuple(run.x.shape[1:]), run.threat.geometry
        radius = torch.minimum(run.distance, run.radius.clamp_max(core.Attack.default_eps[norm.name]))
        uniform, normal = run.rng.uniform(shape, "fab", purpose), run.rng.normal(shape, "fab", purpose)
        return (run.x + run.threat.masked(norm.random_point(normal, uniform, radius)) / 2).clamp(0, 1)
