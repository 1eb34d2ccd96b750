"""Projected gradient descent with a fixed step: the base of BIM and PGD.

x_t+1 = project(x_t + alpha * d), where d maximises <gradient, d> over ||d|| <= 1: sign(gradient) for linf,
gradient / ||gradient||_2 for l2 (Madry et al. 2018).
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import Tensor

from models.attacks.core import base as core
from models.attacks.core.norms import expand_to
from models.attacks.core.run import AttackRun, LossFn
from models.capabilities import Classifies, DetectsObjects, Segments


def sparse_sign(x: Tensor, gradient: Tensor, share: float) -> Tensor:
    """Signs of the `share` of values with the largest gradient that can still move, of L1 norm 1 (SLIDE, Tramer 2019).

    The steepest direction of the L1 ball changes a single value, with which progress is far slower.
    """
    stuck = ((x <= 0) & (gradient < 0)) | ((x >= 1) & (gradient > 0))
    size = gradient.abs().masked_fill(stuck, 0).flatten(1)
    count = max(1, round(share * size.shape[1]))
    least = size.topk(count, 1).values[:, -1]
    signs = gradient.sign() * ((size >= least[:, None]) & (size > 0)).view_as(x)
    return signs / expand_to(signs.abs().flatten(1).sum(1).clamp_min(1), x)


def direction(run: AttackRun, x: Tensor, gradient: Tensor) -> Tensor:
    """The ascent direction of length 1 in the norm of the threat."""
    if run.threat.norm == "l1":
        return sparse_sign(x, gradient, 0.01)
    return run.threat.geometry.steepest(gradient)


def random_start(run: AttackRun, purpose: object) -> Tensor:
    """A random point of the ball around each image."""
    shape = tuple(run.x.shape[1:])
    normal, uniform = run.rng.normal(shape, "start", purpose), run.rng.uniform(shape, "start size", purpose)
    delta = run.threat.masked(run.threat.geometry.random_point(normal, uniform, run.radius))
    return run.threat.project(run.x, run.x + delta)


class Descent(core.Attack):
    """Steps along the gradient, each projected into the ball."""

    norms = ("linf", "l2", "l1")
    victims = (Classifies, Segments, DetectsObjects)

    class Config(core.Config):
        norm: Literal["linf", "l2", "l1"] = Field("linf", description="Norm of the perturbation.")
        steps: int = Field(10, ge=1, le=10_000, description="Gradient steps.")
        step: core.Eps | None = Field(None, gt=0, description="Length of a step. Default: 2.5 * eps / steps.")
        stop_early: bool = Field(True, description="Stop on an image once it is adversarial.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        yield from self.descend(run, self.first(run))

    def first(self, run: AttackRun) -> Tensor:
        """The starting point: the caller's, projected into the ball, else the image."""
        return run.x if run.start is run.x else run.threat.project(run.x, run.start)

    def descend(self, run: AttackRun, first: Tensor, loss_fn: LossFn | None = None) -> Iterator[None]:
        """One run from `first`. The forward pass of each step also evaluates the image of the previous step."""
        state = run.state
        state.x = first
        for number in range(self.config.steps):
            _, gradient = run.value_and_grad(state.x, loss_fn or self.loss_fn(run, number))
            step = direction(run, state.x, gradient) * expand_to(self.length(run, number), state.x)
            state.x = run.threat.project(run.x, state.x + step)
            yield
        run.evaluate(state.x)

    def loss_fn(self, run: AttackRun, number: int) -> LossFn | None:
        """The loss that step `number` increases; None: the criterion's loss."""
        return None

    def length(self, run: AttackRun, number: int) -> Tensor:
        """(N,) length of step `number`."""
        step = self.config.step
        return 2.5 * run.radius / self.config.steps if step is None else run.radius.new_full((len(run.x),), step)
