"""Dense adversary generation (Xie et al. 2017): small steps for all pixels or objects that still hold out together."""

from collections.abc import Iterator

from pydantic import Field

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun
from models.capabilities import DetectsObjects, Segments


class DAG(core.Attack):
    """The paper knows no eps and stops when fewer than 1 % of the targets are left; with eps, steps stay inside.

    Its step of 0.5 is in units of 0 to 255. An image that does not get there comes back as far as it got.
    """

    name = "dag"
    summary = "Steps for all pixels or objects that still hold out, until hardly any does (Xie et al. 2017)"
    norms = ("linf",)
    minimal = True
    victims = (Segments, DetectsObjects)

    class Config(core.Config):
        steps: int = Field(200, ge=1, le=10_000, description="Most gradient steps.")
        gamma: core.Eps = Field(0.5 / 255, gt=0, le=1, description="Largest change of a pixel in one step.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state = run.state
        state.x = run.x
        for _ in range(self.config.steps):
            margin, gradient = run.value_and_grad(state.x, lambda logits: run.criterion.dag_loss(logits))
            run.done = run.done | (margin < 0)
            size = gradient.abs().flatten(1).amax(1).clamp_min(TINY)
            step = gradient * expand_to(self.config.gamma / size, gradient)
            # a row that got there keeps the image that did
            state.x = run.threat.project(run.x, state.x + step * expand_to(~run.done, step))
            yield
        run.evaluate(state.x)
