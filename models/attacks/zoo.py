"""Zeroth-order optimisation (Chen et al. 2017): the Carlini & Wagner loss, its slope measured along single values."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.run import AttackRun
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

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        count = min(config.coordinates, run.x[0].numel())
        Weights(run, config.weight)
        for search in range(config.searches):
            state.x, state.loss = run.x, torch.full_like(run.distance, torch.inf)
            state.first = state.second = state.updates = torch.zeros_like(run.x.flatten(1))
            run.paused = torch.zeros_like(run.done)
            for step in range(config.steps):
                self._descend(run, count, (search, step))
                yield
                if step % -(-config.steps // 10) == 0:
                    self._stop_stuck(run)
                if not bool(run.active.any()):
                    break
            Weights.narrow(run)

    def _descend(self, run: AttackRun, count: int, purpose: tuple) -> None:
        state, width, size = run.state, self.config.width, run.x[0].numel()
        allowed = run.threat.masked(torch.ones_like(run.x)).flatten(1) > 0
        order = torch.where(allowed, run.rng.uniform((size,), "zoo", *purpose), 2.0).argsort(dim=1, stable=True)
        chosen = order[:, :count]

        def probes(places: Tensor) -> Tensor:
            moves = torch.zeros(len(places), count, size, device=chosen.device)
            moves.scatter_(2, chosen[places][:, :, None], width)
            moves = moves.view(-1, count, *run.x.shape[1:])
            centre = state.x[places][:, None]
            return torch.cat([centre + moves, centre - moves], 1).clamp(0, 1)

        margins = run.evaluate_many(probes, 2 * count)
        up, down = margins[:, :count], margins[:, count:]
        value = state.x.flatten(1).gather(1, chosen)
        reach = (value + width).clamp_max(1) - (value - width).clamp_min(0)  # probes are cut at the pixel range
        slope = state.weight[:, None] * (torch.relu(up) - torch.relu(down)).nan_to_num(0, 0, 0) / reach
        slope = slope + 2 * (value - run.x.flatten(1).gather(1, chosen))
        self._adam(run, chosen, slope)
        margin = run.evaluate(state.x)
        state.found = state.found | ((margin < 0) & run.active)
        state.now = (state.x - run.x).flatten(1).square().sum(1) + state.weight * torch.relu(margin)

    def _adam(self, run: AttackRun, chosen: Tensor, slope: Tensor) -> None:
        """Adam with moments and a count of its own for each value (algorithm 2)."""
        state = run.state
        updates = state.updates.gather(1, chosen) + 1
        first = 0.9 * state.first.gather(1, chosen) + 0.1 * slope
        second = 0.999 * state.second.gather(1, chosen) + 0.001 * slope.square()
        step = first / (1 - 0.9**updates) / ((second / (1 - 0.999**updates)).sqrt() + 1e-8) * self.config.learning_rate
        active = run.active[:, None]
        flat = state.x.flatten(1)
        moved = flat.scatter(1, chosen, (flat.gather(1, chosen) - step).clamp(0, 1))
        state.x = torch.where(active, moved, flat).view_as(run.x)
        state.first, state.second = state.first.scatter(1, chosen, first), state.second.scatter(1, chosen, second)
        state.updates = state.updates.scatter(1, chosen, updates)

    def _stop_stuck(self, run: AttackRun) -> None:
        state = run.state
        run.paused = run.paused | ~(state.now <= 0.9999 * state.loss)
        state.loss = state.now
