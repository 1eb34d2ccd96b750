"""The start of decision-based attacks: an adversarial image at any distance, and bisection back to the boundary."""

import torch
from torch import Tensor

from models.attacks.core.norms import NORMS, expand_to
from models.attacks.core.run import AttackRun


def seek_start(run: AttackRun, tries: int) -> None:
    """Put an adversarial image into `run.state.x`: the caller's, or uniform noise. Rows without one are done."""
    state, shape = run.state, tuple(run.x.shape[1:])
    state.x = run.start
    started = torch.zeros_like(run.done)
    for number in range(tries):
        from_caller = number == 0 and run.start is not run.x
        image = run.start if from_caller else run.rng.uniform(shape, "noise", number)
        image = torch.where(expand_to(started, image), state.x, run.threat.at(None).project(run.x, image))
        run.paused = started
        hit = run.evaluate(image) < 0
        state.x = torch.where(expand_to(hit & ~started, image), image, state.x)
        started = started | hit
        if bool((started | run.done).all()):
            break
    run.paused = torch.zeros_like(started)
    run.done = run.done | ~started


def between(x: Tensor, far: Tensor, share: Tensor, norm: str) -> Tensor:
    """A point between `x` and `far`: at a fraction `share` of the way or, for linf, clipped to the radius `share`."""
    if norm == "linf":
        return x + NORMS["linf"].project(far - x, share)
    return x + expand_to(share, x) * (far - x)


def to_boundary(run: AttackRun, far: Tensor, tolerance: float) -> Tensor:
    """The adversarial point between each image and `far` closest to the image, by bisection; rows halve in step."""
    norm = run.threat.norm
    high = NORMS["linf"].size(far - run.x) if norm == "linf" else torch.ones_like(run.distance)
    low, width = torch.zeros_like(high), 1.0
    while width > tolerance:
        middle = (low + high) / 2
        hit = run.evaluate(between(run.x, far, middle, norm)) < 0
        high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
        width /= 2
    return between(run.x, far, high, norm)
