"""Dense adversary generation (Xie et al. 2017): steps for all pixels or objects that are not yet adversarial."""

from collections.abc import Iterator

from pydantic import Field

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun
from models.capabilities import DetectsObjects, Segments


class DAG(core.Attack):
    """The paper has no eps and stops when fewer than 1 % of the targets are left; with eps, steps are projected.

    Its step of 0.5 is in units of 0 to 255. An image without success is returned with its smallest margin.
    """

    name = "dag"
    summary = "Gradient steps for all pixels or objects not yet adversarial (Xie et al. 2017)"
    norms = ("linf",)
    minimal = True
    victims = (Segments, DetectsObjects)

    class Config(core.Config):
        steps: int = Field(200, ge=1, le=10_000, description="Maximum gradient steps.")
        gamma: core.Eps = Field(0.5 / 255, gt=0, le=1, description="Maximum change of a value in one step.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state = run.state
        state.x = run.x
        for _ in range(self.config.steps):
            margin, gradient = run.value_and_grad(state.x, lambda logits: run.criterion.dag_loss(logits))
            run.done = run.done | (margin < 0)
            # x_m+1 = x_m + gamma / ||r_m||_inf * r_m
            size = gradient.abs().flatten(1).amax(1).clamp_min(TINY)
            step = gradient * expand_to(self.config.gamma / size, gradient)
            # a successful row keeps its image
            state.x = run.threat.project(run.x, state.x + step * expand_to(~run.done, step))
            yield
        run.evaluate(state.x)
