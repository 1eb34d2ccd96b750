"""Boundary attack (Brendel et al. 2018): a random walk along the decision boundary towards the image, labels only."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.boundary_start import seek_start, to_boundary
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun

CHECK_EVERY = 10
"""Steps between evaluations of the orthogonal step alone, from which the step sizes are adapted."""


def append(past: Tensor, hit: Tensor) -> Tensor:
    """The queue (N, length) of outcomes, NaN where empty, with `hit` (N,) appended and the oldest removed."""
    return torch.cat([past[:, 1:], hit.to(past.dtype)[:, None]], 1)


class Boundary(core.Attack):
    name = "boundary"
    summary = "Random walk along the decision boundary towards the image, from labels alone (Brendel et al. 2018)"
    norms = ("l2",)
    forwards = "2 * steps + tries + 30"
    backwards = "0"
    access = "labels"
    minimal = True

    class Config(core.Config):
        steps: int = Field(25_000, ge=1, le=1_000_000, description="Steps of the random walk.")
        sideways: float = Field(0.01, gt=0, le=1, description="Initial orthogonal step, relative to the distance.")
        forward: float = Field(
            0.01, gt=0, le=1, description="Initial step towards the image, relative to the distance."
        )
        adapt: float = Field(1.5, gt=1, le=10, description="Factor by which step sizes change.")
        tries: int = Field(100, ge=1, le=10_000, description="Maximum noise images tried as the starting point.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        seek_start(run, config.tries)
        state.x = to_boundary(run, state.x, 1e-3)
        state.sideways = torch.full_like(run.distance, config.sideways)
        state.forward = torch.full_like(run.distance, config.forward)
        state.round_hits = run.distance.new_full((len(run.x), 100), torch.nan)
        state.step_hits = run.distance.new_full((len(run.x), 30), torch.nan)
        yield
        for number in range(1, config.steps + 1):
            forward, sideways = self._candidates(run, number)
            hit = run.evaluate(forward) < 0
            if number % CHECK_EVERY == 0:
                state.round_hits = append(state.round_hits, run.margin_of(run.logits(sideways)) < 0)
                state.step_hits = append(state.step_hits, hit)
                self._adapt(run)
            closer = run.threat.distance(run.x, forward) < run.threat.distance(run.x, state.x)
            state.x = torch.where(expand_to(hit & closer, forward), forward, state.x)
            run.done = run.done | (state.forward < 1e-7)
            yield

    def _candidates(self, run: AttackRun, number: int) -> tuple[Tensor, Tensor]:
        """The points after a random orthogonal step and a step towards the image, and after the first alone."""
        state = run.state
        back = (run.x - state.x).flatten(1)
        far = back.norm(dim=1, keepdim=True).clamp_min(TINY)
        noise = run.threat.masked(run.rng.normal(tuple(run.x.shape[1:]), "walk", number)).flatten(1)
        noise = noise - (noise * back).sum(1, keepdim=True) / far.square() * back
        noise = noise * (state.sideways[:, None] * far / noise.norm(dim=1, keepdim=True).clamp_min(TINY))
        sphere = (noise - back) / (state.sideways[:, None].square() + 1).sqrt()
        sideways = (run.x + sphere.view_as(run.x)).clamp(0, 1)
        back = (run.x - sideways).flatten(1)
        left = back.norm(dim=1, keepdim=True).clamp_min(TINY)
        length = (state.forward[:, None] * far + left - far).clamp_min(0) / left
        return (sideways + (length * back).view_as(run.x)).clamp(0, 1), sideways

    def _adapt(self, run: AttackRun) -> None:
        """Larger steps where the boundary looks flat, smaller steps where most steps fail."""
        state, factor = run.state, self.config.adapt
        rate, full = state.round_hits.mean(1), ~state.round_hits.isnan().any(1)
        change = torch.where(full & (rate > 0.5), factor, torch.where(full & (rate < 0.2), 1 / factor, 1.0))
        state.sideways, state.forward = state.sideways * change, state.forward * change
        state.round_hits = torch.where((change != 1)[:, None], torch.nan, state.round_hits)
        rate, full = state.step_hits.mean(1), ~state.step_hits.isnan().any(1)
        change = torch.where(full & (rate > 0.25), factor, torch.where(full & (rate < 0.1), 1 / factor, 1.0))
        state.forward = state.forward * change
        state.step_hits = torch.where((change != 1)[:, None], torch.nan, state.step_hits)
