"""What decision-based attacks begin with: an adversarial image, however far away, and the way back to the boundary."""

import torch
from torch import Tensor

from models.attacks.core.norms import NORMS, expand_to
from models.attacks.core.run import AttackRun


def seek_start(run: AttackRun, tries: int) -> None:
    """Put an adversarial image into `run.state.x`: the caller's, or random noise; rows without one are done."""
    state, shape = run.state, tuple(run.x.shape[1:])
    state.x = run.start
    found = torch.zeros_like(run.done)
    for number in range(tries):
        given = number == 0 and run.start is not run.x
        image = run.start if given else run.draws.uniform(shape, "noise", number)
        image = torch.where(expand_to(found, image), state.x, run.threat.at(None).project(run.x, image))
        run.paused = found
        hit = run.evaluate(image) < 0
        state.x = torch.where(expand_to(hit & ~found, image), image, state.x)
        found = found | hit
        if bool((found | run.done).all()):
            break
    run.paused = torch.zeros_like(found)
    run.done = run.done | ~found


def between(x: Tensor, far: Tensor, share: Tensor, norm: str) -> Tensor:
    """The point on the way from `x` to `far`: at a share of the way, or clipped to a linf radius."""
    if norm == "linf":
        return x + NORMS["linf"].project(far - x, share)
    return x + expand_to(share, x) * (far - x)


def to_boundary(run: AttackRun, far: Tensor, tolerance: float) -> Tensor:
    """The adversarial point nearest to each image on the way to `far`, by bisection; all rows halve alike."""
    norm = run.threat.norm
    high = NORMS["linf"].size(far - run.x) if norm == "linf" else torch.ones_like(run.distance)
    low, width = torch.zeros_like(high), 1.0
    while width > tolerance:
        middle = (low + high) / 2
        hit = run.evaluate(between(run.x, far, middle, norm)) < 0
        high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
        width /= 2
    return between(run.x, far, high, norm)
