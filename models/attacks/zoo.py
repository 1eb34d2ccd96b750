"""Zeroth-order optimisation (Chen et al. 2017): coordinate Adam on the Carlini & Wagner loss, gradients from scores."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.run import AttackRun
from models.attacks.cw import Weights


class ZOO(core.Attack):
    name = "zoo"
    summary = "Coordinate descent on the Carlini & Wagner loss, gradients from scores (Chen et al. 2017)"
    norms = ("l2",)
    forwards = "searches * steps * (2 * coordinates + 1) + 2"
    backwards = "0"
    at_once = "2 * coordinates"
    access = "scores"
    minimal = True

    class Config(core.Config):
        steps: int = Field(1000, ge=1, le=100_000, description="Steps for each weight c.")
        searches: int = Field(5, ge=1, le=30, description="Steps of the binary search for c.")
        coordinates: int = Field(128, ge=1, le=10_000, description="Coordinates updated in one step.")
        width: float = Field(1e-3, gt=0, le=1, description="Step h of the finite differences.")
        learning_rate: float = Field(0.01, gt=0, le=1, description="Step size of Adam.")
        weight: float = Field(1.0, gt=0, le=1e6, description="Initial weight c of the margin.")

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
        coordinates = order[:, :count]

        def probes(places: Tensor) -> Tensor:
            moves = torch.zeros(len(places), count, size, device=coordinates.device)
            moves.scatter_(2, coordinates[places][:, :, None], width)
            moves = moves.view(-1, count, *run.x.shape[1:])
            centre = state.x[places][:, None]
            return torch.cat([centre + moves, centre - moves], 1).clamp(0, 1)

        margins = run.evaluate_many(probes, 2 * count)
        up, down = margins[:, :count], margins[:, count:]
        value = state.x.flatten(1).gather(1, coordinates)
        reach = (value + width).clamp_max(1) - (value - width).clamp_min(0)  # 2 h, less at the ends of the pixel range
        # (f(x + h e_i) - f(x - h e_i)) / 2h for f = c * (margin)+ + ||x - x_0||_2^2, the second term exactly
        gradient = state.weight[:, None] * (torch.relu(up) - torch.relu(down)).nan_to_num(0, 0, 0) / reach
        gradient = gradient + 2 * (value - run.x.flatten(1).gather(1, coordinates))
        self._adam(run, coordinates, gradient)
        margin = run.evaluate(state.x)
        state.succeeded = state.succeeded | ((margin < 0) & run.active)
        state.now = (state.x - run.x).flatten(1).square().sum(1) + state.weight * torch.relu(margin)

    def _adam(self, run: AttackRun, coordinates: Tensor, gradient: Tensor) -> None:
        """Adam with separate moments and step counts for each coordinate (algorithm 2)."""
        state = run.state
        updates = state.updates.gather(1, coordinates) + 1
        first = 0.9 * state.first.gather(1, coordinates) + 0.1 * gradient
        second = 0.999 * state.second.gather(1, coordinates) + 0.001 * gradient.square()
        step = first / (1 - 0.9**updates) / ((second / (1 - 0.999**updates)).sqrt() + 1e-8) * self.config.learning_rate
        active = run.active[:, None]
        flat = state.x.flatten(1)
        stepped = flat.scatter(1, coordinates, (flat.gather(1, coordinates) - step).clamp(0, 1))
        state.x = torch.where(active, stepped, flat).view_as(run.x)
        state.first, state.second = (
            state.first.scatter(1, coordinates, first),
            state.second.scatter(1, coordinates, second),
        )
        state.updates = state.updates.scatter(1, coordinates, updates)

    def _stop_stuck(self, run: AttackRun) -> None:
        state = run.state
        run.paused = run.paused | ~(state.now <= 0.9999 * state.loss)
        state.loss = state.now
