"""Fast adaptive boundary attack (Croce & Hein 2020): project onto the linearised boundary, with a pull to the image."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgdt import likely, places
from models.attacks.core import base as core
from models.attacks.core.hyperplane import step_to
from models.attacks.core.multi_target import abreast, spread
from models.attacks.core.norms import NORMS, TINY, wide
from models.attacks.core.run import Trial
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
    ranks = True
    minimal = True

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="How the perturbation is measured.")
        steps: int = Field(100, ge=1, le=10_000, description="Projections, towards each class.")
        targets: int = Field(9, ge=0, le=1000, description="Classes to try in turn; 0: the nearest of all each time.")
        restarts: int = Field(1, ge=1, le=100, description="Runs, the second and later ones from random points.")

    def steps(self, trial: Trial) -> Iterator[None]:
        tried = places(trial, self.config.targets) if self.config.targets else (0,)
        if len(tried) > 1 and self.config.restarts == 1 and spread(trial):
            yield from abreast(trial, len(tried), self._beside)
            return
        for place in tried:
            for restart in range(self.config.restarts):
                trial.state.label, trial.state.target = likely(trial, place)
                yield from self._approach(trial, bool(place), (place, restart) if restart else None)

    def _beside(self, copies: Trial, number: Tensor) -> Iterator[None]:
        copies.state.label, copies.state.target = likely(copies, number + 1)
        yield from self._approach(copies, True, None)

    def _approach(self, trial: Trial, one_class: bool, start: object) -> Iterator[None]:
        state, norm = trial.state, NORMS[trial.threat.norm]
        state.x = trial.x if start is None else self._random(trial, start)
        for _ in range(self.config.steps):
            value, normal = self._boundary(trial, one_class)
            offset = (normal * (trial.x - state.x).flatten(1)).sum(1)
            both = torch.cat([state.x, trial.x]).flatten(1), normal.repeat(2, 1), torch.cat([value, value + offset])
            d, d0 = step_to(*both, norm.name).view(2, *state.x.shape)
            length, length0 = norm.size(d).clamp_min(1e-8), norm.size(d0).clamp_min(1e-8)
            pull = wide((length / (length + length0)).clamp_max(ALPHA), d)
            state.x = ((state.x + ETA * d) * (1 - pull) + (trial.x + ETA * d0) * pull).clamp(0, 1)
            margin = trial.margin_of(trial.scores(state.x))
            self._offer(trial, margin)
            back = trial.x + (state.x - trial.x) * BETA
            state.x = torch.where(wide(margin < 0, back), back, state.x)
            yield

    def _boundary(self, trial: Trial, one_class: bool) -> tuple[Tensor, Tensor]:
        """The nearest linearised boundary: its value (N,) at the present point and its normal (N, D)."""
        state = trial.state
        if one_class:
            gap = lambda logits: pick(logits, state.label) - pick(logits, state.target)  # noqa: E731
            _, normal = trial.slope(state.x, gap, offer=False)
            return trial.value, normal.flatten(1)
        count = trial.clean_logits.shape[1] - 1
        values, normals = trial.jacobian(state.x, lambda logits: trial.criterion.surfaces(logits, count), offer=False)
        normals = normals.flatten(2)
        lengths = normals.norm(p=DUAL[trial.threat.norm], dim=2).clamp_min(TINY)
        best = (values.abs() / lengths).argmin(1)
        rows = torch.arange(len(values), device=values.device)
        return values[rows, best], normals[rows, best]

    def _offer(self, trial: Trial, margin: Tensor) -> None:
        """Inside a bounded attack only points of the ball count."""
        if not trial.minimal:
            near = trial.threat.distance(trial.x, trial.state.x) <= trial.radius * (1 + SLACK)
            margin = torch.where(near, margin, torch.inf)
        trial.offer(trial.state.x, margin)

    def _random(self, trial: Trial, purpose: object) -> Tensor:
        """Halfway to a random point as far away as the best one so far."""
        shape, norm = tuple(trial.x.shape[1:]), trial.threat.geometry
        radius = torch.minimum(trial.distance, trial.radius.clamp_max(core.Attack.default_eps[norm.name]))
        uniform, normal = trial.draws.uniform(shape, "fab", purpose), trial.draws.normal(shape, "fab", purpose)
        return (trial.x + trial.threat.masked(norm.scatter(normal, uniform, radius)) / 2).clamp(0, 1)
