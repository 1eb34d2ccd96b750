"""Jacobian saliency map attack (Papernot et al. 2016): changes the pair of values with the largest saliency."""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from models.attacks.apgdt import label_and_target
from models.attacks.core import base as core
from models.attacks.core.run import AttackRun
from models.attacks.criteria.classification import pick

PAIRED = 512
"""Maximum values from which pairs are formed: those with the largest difference of derivatives."""


def best_pair(helps: Tensor, harms: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (N, 2) of the pair (p, q) with the largest saliency, and (N,) whether a row has a pair above 0.

    alpha = helps_p + helps_q, beta = harms_p + harms_q; saliency = -alpha * beta if alpha > 0 and beta < 0 (eq. 8 and
    algorithm 3). `helps` and `harms` (N, D) are the derivatives of the target's logit and of the sum of the others;
    only `free` values can change.
    """
    worth = torch.where(free, helps - harms, -torch.inf)
    best = worth.topk(min(PAIRED, worth.shape[1]), 1).indices
    helps, harms, free = helps.gather(1, best), harms.gather(1, best), free.gather(1, best)
    pairs = []
    for help_, harm, able in zip(helps, harms, free, strict=True):  # one image at a time: a (D, D) matrix each
        gain, loss = help_[:, None] + help_, harm[:, None] + harm
        allowed = (gain > 0) & (loss < 0) & able & able[:, None]
        saliency = torch.where(allowed, -gain * loss, -1.0).fill_diagonal_(-1.0).flatten()
        top = saliency.argmax()
        pairs.append(torch.stack([top // len(able), top % len(able), (saliency[top] > 0).long()]))
    table = torch.stack(pairs)
    return best.gather(1, table[:, :2]), table[:, 2].bool()


class JSMA(core.Attack):
    name = "jsma"
    summary = "Changes the two values with the largest saliency in each step (Papernot et al. 2016)"
    norms = ("l0",)
    forwards = "gamma * pixels / 2 + 3"
    backwards = "gamma * pixels + 2"
    needs_class_scores = True
    minimal = True

    class Config(core.Config):
        theta: float = Field(1.0, ge=-1, le=1, description="Change of a value; above 0 brighter, below 0 darker.")
        gamma: float = Field(0.1, gt=0, le=1, description="Maximum fraction of the values to change.")

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        _, state.target = label_and_target(run, 1)
        state.x, state.free = run.x, self._movable(run, run.x)
        size = run.x[0].numel()
        for _ in range(max(1, int(config.gamma * size / 2))):
            _, gradients = run.jacobian(state.x, lambda logits: self._surfaces(logits, state.target))
            run.done = run.done | (run.margin < 0)
            helps, harms = gradients.flatten(2).unbind(1)
            sign = 1.0 if config.theta > 0 else -1.0
            pair, exists = best_pair(sign * helps, sign * harms, state.free)
            run.done = run.done | ~exists
            flat = state.x.flatten(1)
            y = flat.scatter(1, pair, (flat.gather(1, pair) + config.theta).clamp(0, 1)).view_as(state.x)
            state.x = torch.where(run.done.view(-1, 1, 1, 1), state.x, y)
            state.free = state.free & self._movable(run, state.x)
            yield
        run.evaluate(state.x)

    def _surfaces(self, logits: Tensor, target: Tensor) -> Tensor:
        aim = pick(logits, target)
        return torch.stack([aim, logits.sum(1) - aim], 1)

    def _movable(self, run: AttackRun, x: Tensor) -> Tensor:
        """(N, D): values that are not at the end of the range and may change."""
        room = x < 1 if self.config.theta > 0 else x > 0
        return (run.threat.masked(torch.ones_like(x)) > 0).logical_and(room).flatten(1)
