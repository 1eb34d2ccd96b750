"""One-pixel attack (Su et al. 2019): differential evolution of positions and colours of a few pixels, scores only."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.run import AttackRun

FACTOR = 0.5
"""F: weight of the difference of two members in a child."""


def paint(x: Tensor, genes: Tensor) -> Tensor:
    """Images (n, p, C, H, W): `x` (n, C, H, W) with the pixels of genes (n, p, pixels, 2 + C) in [0, 1] set.

    Genes are row, column and colour of each pixel.
    """
    count, population = genes.shape[:2]
    channels, height, width = x.shape[1:]
    row = (genes[..., 0] * height).long().clamp(0, height - 1)
    column = (genes[..., 1] * width).long().clamp(0, width - 1)
    flat = x[:, None].expand(-1, population, -1, -1, -1).flatten(3)
    place = (row * width + column)[:, :, None, :].expand(-1, -1, channels, -1)
    return flat.scatter(3, place, genes[..., 2:].transpose(2, 3)).view(count, population, *x.shape[1:])


class OnePixel(core.Attack):
    name = "onepixel"
    summary = "Changes one pixel or a few, found by differential evolution from scores (Su et al. 2019)"
    norms = ("l0",)
    forwards = "(steps + 1) * population + 2"
    backwards = "0"
    at_once = "population"
    access = "scores"
    default_eps = {**core.Attack.default_eps, "l0": 1.0}
    warm_start = False

    class Config(core.Config):
        steps: int = Field(100, ge=1, le=10_000, description="Generations.")
        population: int = Field(400, ge=4, le=10_000, description="Members of a generation; each costs a query.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, size, channels = run.state, self.config.population, run.x.shape[1]
        pixels = max(1, int(run.radius.max()))  # rows with a smaller eps use the first of their pixels only
        shape = (size, pixels, 2 + channels)
        state.genes = run.rng.uniform(shape, "first generation")
        state.allowed = torch.arange(pixels, device=run.x.device) < run.radius[:, None]
        state.fitness = self._fitness(run, state.genes)
        yield
        for number in range(self.config.steps):
            children = self._children(run, state.genes, number)
            fitness = self._fitness(run, children)
            better = fitness < state.fitness
            state.fitness = torch.where(better, fitness, state.fitness)
            state.genes = torch.where(better[:, :, None, None], children, state.genes)
            yield

    def _fitness(self, run: AttackRun, genes: Tensor) -> Tensor:
        def images(places: Tensor) -> Tensor:
            count = run.state.allowed[places].sum(1)
            first = genes[places][:, :, :1]
            used = torch.arange(genes.shape[2], device=genes.device) < count[:, None]
            return paint(run.x[places], torch.where(used[:, None, :, None], genes[places], first))

        return run.evaluate_many(images, self.config.population)

    def _children(self, run: AttackRun, genes: Tensor, number: int) -> Tensor:
        """clip(a + F * (b - c)) for three random members of each child."""
        size = self.config.population
        draw = run.rng.integers(size, (3, size), "parents", number)
        rows = torch.arange(len(genes), device=genes.device)[:, None]
        a, b, c = (genes[rows, draw[:, k]] for k in range(3))
        return (a + FACTOR * (b - c)).clamp(0, 1)
