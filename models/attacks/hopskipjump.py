"""HopSkipJump (Chen et al. 2020): steps along the normal of the decision boundary, estimated from labels alone."""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.boundary_start import seek_start, to_boundary
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.rng import RowRNG
from models.attacks.core.run import AttackRun

HALVINGS = 20


class HopSkipJump(core.Attack):
    name = "hopskipjump"
    summary = "Steps along the normal of the boundary, estimated from labels alone (Chen et al. 2020)"
    norms = ("l2", "linf")
    forwards = "steps * (min(samples * steps ** 0.5, most_samples) + 60) + tries + 30"
    backwards = "0"
    at_once = "samples"
    access = "labels"
    minimal = True

    class Config(core.Config):
        norm: Literal["l2", "linf"] = Field("l2", description="Norm of the perturbation.")
        steps: int = Field(50, ge=1, le=10_000, description="Number of steps, each with an estimate of the normal.")
        samples: int = Field(
            100, ge=2, le=10_000, description="Queries of the first estimate; step t uses samples * sqrt(t)."
        )
        most_samples: int = Field(10_000, ge=2, le=100_000, description="Maximum queries of one estimate.")
        tries: int = Field(100, ge=1, le=10_000, description="Maximum noise images tried as the starting point.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config, size = run.state, self.config, run.x[0].numel()
        tolerance = 1 / size**2 if run.threat.norm == "linf" else 1 / size**1.5
        seek_start(run, config.tries)
        state.x = to_boundary(run, state.x, tolerance)
        yield
        for step in range(config.steps):
            state.far = run.threat.distance(run.x, state.x)
            probe = torch.full_like(state.far, 0.1) if step == 0 else state.far / size
            count = min(int(config.samples * (step + 1) ** 0.5), config.most_samples)
            normal = self._normal(run, probe, count, step)
            self._jump(run, normal, state.far / (step + 1) ** 0.5)
            state.x = to_boundary(run, state.x, tolerance)
            yield

    def _normal(self, run: AttackRun, probe: Tensor, count: int, step: int) -> Tensor:
        """The normal of the boundary, estimated from `count` probes x + delta * u_b with phi_b = 1 or -1 (eq. 16).

        sum_b (phi_b - mean(phi)) u_b / ||sum_b (phi_b - mean(phi)) u_b||, or its sign for linf.
        """
        point, seeds, linf = run.state.x, run.seeds, run.threat.norm == "linf"
        shape = (count, *run.x.shape[1:])

        def probes(places: Tensor | slice) -> Tensor:
            rng = RowRNG(seeds[places])
            u = 2 * rng.uniform(shape, "probe", step) - 1 if linf else rng.normal(shape, "probe", step)
            if run.threat.mask is not None:
                u = u * run.threat.mask[places if len(run.threat.mask) > 1 else slice(None)][:, None]
            u = u / u.flatten(2).norm(dim=2).clamp_min(TINY)[:, :, None, None, None]
            return (point[places][:, None] + probe[places].view(-1, 1, 1, 1, 1) * u).clamp(0, 1)

        phi = torch.where(run.evaluate_many(probes, count) < 0, 1.0, -1.0)
        mean = phi.mean(1, keepdim=True)
        phi = torch.where(mean.abs() == 1, phi, phi - mean)
        normal = torch.zeros_like(point)
        for row in run.active.nonzero()[:, 0].tolist():
            steps = probes(slice(row, row + 1))[0] - point[row]  # after clipping, as evaluated
            normal[row] = (phi[row].view(-1, 1, 1, 1) * steps).mean(0)
        return normal.sign() if linf else run.threat.geometry.steepest(normal)

    def _jump(self, run: AttackRun, normal: Tensor, length: Tensor) -> None:
        """A step along the normal, halved until the image is adversarial; other rows stay in place.

        The first length is ||x_t - x_0|| / sqrt(t)  (step size search of Algorithm 2).
        """
        state = run.state
        landed = torch.zeros_like(run.done)
        for _ in range(HALVINGS):
            run.paused = landed
            aim = (state.x + expand_to(length, normal) * normal).clamp(0, 1)
            hit = (run.evaluate(aim) < 0) & ~landed
            state.x = torch.where(expand_to(hit, aim), aim, state.x)
            landed, length = landed | hit, length / 2
            if bool((landed | run.done).all()):
                break
        run.paused = torch.zeros_like(landed)
