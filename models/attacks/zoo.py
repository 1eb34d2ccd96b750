"""Zeroth-order optimisation (Chen et al. 2017): the Carlini & Wagner loss, its slope measured along single values."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.run import Trial
from models.attacks.cw import Weights


class ZOO(core.Attack):
    name = "zoo"
    summary = "Coordinate descent on the Carlini & Wagner loss with slopes measured from scores (Chen et al. 2017)"
    norms = ("l2",)
    forwards = "searches * steps * (2 * coordinates + 1) + 2"
    backwards = "0"
    access = "scores"
    minimal = True

    class Config(core.Config):
        steps: int = Field(1000, ge=1, le=100_000, description="Steps for each weight.")
        searches: int = Field(5, ge=1, le=30, description="Weights to try.")
        coordinates: int = Field(128, ge=1, le=10_000, description="Values whose slope is measured in one step.")
        width: float = Field(1e-3, gt=0, le=1, description="Distance of the two probes from the image.")
        learning_rate: float = Field(0.01, gt=0, le=1, description="Step size of Adam for each value.")
        weight: float = Field(1.0, gt=0, le=1e6, description="First weight of the margin.")

    def steps(self, trial: Trial) -> Iterator[None]:
        state, config = trial.state, self.config
        count = min(config.coordinates, trial.x[0].numel())
        Weights(trial, config.weight)
        for search in range(config.searches):
            state.x, state.loss = trial.x, torch.full_like(trial.distance, torch.inf)
            state.first = state.second = state.seen = torch.zeros_like(trial.x.flatten(1))
            trial.idle = torch.zeros_like(trial.done)
            for step in range(config.steps):
                self._descend(trial, count, (search, step))
                yield
                if step % -(-config.steps // 10) == 0:
                    self._stop_stuck(trial)
                if not bool(trial.active.any()):
                    break
            Weights.narrow(trial)

    def _descend(self, trial: Trial, count: int, purpose: tuple) -> None:
        state, width, size = trial.state, self.config.width, trial.x[0].numel()
        allowed = trial.threat.masked(torch.ones_like(trial.x)).flatten(1) > 0
        order = torch.where(allowed, trial.draws.uniform((size,), "zoo", *purpose), 2.0).argsort(dim=1, stable=True)
        chosen = order[:, :count]

        def probes(places: Tensor) -> Tensor:
            moves = torch.zeros(len(places), count, size, device=chosen.device)
            moves.scatter_(2, chosen[places][:, :, None], width)
            moves = moves.view(-1, count, *trial.x.shape[1:])
            centre = state.x[places][:, None]
            return torch.cat([centre + moves, centre - moves], 1).clamp(0, 1)

        margins = trial.look_many(probes, 2 * count)
        up, down = margins[:, :count], margins[:, count:]
        value = state.x.flatten(1).gather(1, chosen)
        reach = (value + width).clamp_max(1) - (value - width).clamp_min(0)  # probes are cut at the pixel range
        slope = state.weight[:, None] * (torch.relu(up) - torch.relu(down)).nan_to_num(0, 0, 0) / reach
        slope = slope + 2 * (value - trial.x.flatten(1).gather(1, chosen))
        self._adam(trial, chosen, slope)
        margin = trial.look(state.x)
        state.found = state.found | ((margin < 0) & trial.active)
        state.now = (state.x - trial.x).flatten(1).square().sum(1) + state.weight * torch.relu(margin)

    def _adam(self, trial: Trial, chosen: Tensor, slope: Tensor) -> None:
        """Adam with moments and a count of its own for each value (algorithm 2)."""
        state = trial.state
        seen = state.seen.gather(1, chosen) + 1
        first = 0.9 * state.first.gather(1, chosen) + 0.1 * slope
        second = 0.999 * state.second.gather(1, chosen) + 0.001 * slope.square()
        step = first / (1 - 0.9**seen) / ((second / (1 - 0.999**seen)).sqrt() + 1e-8) * self.config.learning_rate
        active = trial.active[:, None]
        flat = state.x.flatten(1)
        moved = flat.scatter(1, chosen, (flat.gather(1, chosen) - step).clamp(0, 1))
        state.x = torch.where(active, moved, flat).view_as(trial.x)
        state.first, state.second = state.first.scatter(1, chosen, first), state.second.scatter(1, chosen, second)
        state.seen = state.seen.scatter(1, chosen, seen)

    def _stop_stuck(self, trial: Trial) -> None:
        state = trial.state
        trial.idle = trial.idle | ~(state.now <= 0.9999 * state.loss)
        state.loss = state.now
