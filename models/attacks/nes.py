"""Natural evolution strategies (Ilyas et al. 2018): projected steps along a gradient estimated from scores."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import expand_to
from models.attacks.core.rng import RowRNG
from models.attacks.core.run import AttackRun


def estimate(run: AttackRun, x: Tensor, pairs: int, width: float, purpose: object, signs: bool) -> Tensor:
    """An estimate of minus the gradient of the margin L, from `pairs` of opposite probes.

    g = 1 / (2 * width * n) * sum_i (L(x + width * u_i) - L(x - width * u_i)) * u_i, where u_i is standard normal
    (NES, Ilyas et al. 2018, alg. 1) or random signs (SPSA, Spall 1992).
    """
    shape = tuple(x.shape[1:])

    def directions(places: Tensor | slice) -> Tensor:
        rng = RowRNG(run.seeds[places])
        return rng.signs((pairs, *shape), purpose) if signs else rng.normal((pairs, *shape), purpose)

    def probes(places: Tensor) -> Tensor:
        u = width * directions(places)
        return (x[places][:, None] + torch.cat([u, -u], 1)).clamp(0, 1)

    margins = run.evaluate_many(probes, 2 * pairs)
    rise = (margins[:, :pairs] - margins[:, pairs:]).nan_to_num(0, 0, 0) / (2 * width * pairs)
    gradient = torch.zeros_like(x)
    for row in run.active.nonzero()[:, 0].tolist():
        gradient[row] = -(rise[row].view(-1, 1, 1, 1) * directions(slice(row, row + 1))[0]).sum(0)
    return run.threat.masked(gradient)


class NES(core.Attack):
    name = "nes"
    summary = "Projected steps along a gradient estimated from scores (Ilyas et al. 2018)"
    norms = ("linf", "l2")
    forwards = "steps * (samples + 1) + 2"
    backwards = "0"
    at_once = "samples"
    access = "scores"

    class Config(core.Config):
        norm: Literal["linf", "l2"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(100, ge=1, le=10_000, description="Gradient steps.")
        samples: int = Field(50, ge=2, le=10_000, description="Queries of each estimate, in antithetic pairs.")
        width: float = Field(0.001, gt=0, le=1, description="Standard deviation of the probes.")
        step: core.Eps | None = Field(
            None, gt=0, description="Length of a step. Default: 0.01 for linf, eps / 10 for l2."
        )

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        state.x = run.x if run.start is run.x else run.threat.project(run.x, run.start)
        for number in range(config.steps):
            gradient = estimate(run, state.x, config.samples // 2, config.width, ("nes", number), signs=False)
            step = run.threat.geometry.steepest(gradient) * expand_to(self._length(run), state.x)
            state.x = run.threat.project(run.x, state.x + step)
            run.evaluate(state.x)
            yield

    def _length(self, run: AttackRun) -> Tensor:
        if self.config.step is not None:
            return torch.full_like(run.radius, self.config.step)
        return torch.full_like(run.radius, 0.01) if run.threat.norm == "linf" else run.radius / 10
