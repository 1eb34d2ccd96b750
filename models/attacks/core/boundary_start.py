"""What decision-based attacks begin with: an adversarial image, however far away, and the way back to the boundary."""

import torch
from torch import Tensor

from models.attacks.core.norms import NORMS, wide
from models.attacks.core.run import Trial


def seek_start(trial: Trial, tries: int) -> None:
    """Put an adversarial image into `trial.state.x`: the caller's, or random noise; rows without one are done."""
    state, shape = trial.state, tuple(trial.x.shape[1:])
    state.x = trial.start
    found = torch.zeros_like(trial.done)
    for number in range(tries):
        given = number == 0 and trial.start is not trial.x
        image = trial.start if given else trial.draws.uniform(shape, "noise", number)
        image = torch.where(wide(found, image), state.x, trial.threat.at(None).project(trial.x, image))
        trial.idle = found
        hit = trial.look(image) < 0
        state.x = torch.where(wide(hit & ~found, image), image, state.x)
        found = found | hit
        if bool((found | trial.done).all()):
            break
    trial.idle = torch.zeros_like(found)
    trial.done = trial.done | ~found


def between(x: Tensor, far: Tensor, share: Tensor, norm: str) -> Tensor:
    """The point on the way from `x` to `far`: at a share of the way, or clipped to a linf radius."""
    if norm == "linf":
        return x + NORMS["linf"].project(far - x, share)
    return x + wide(share, x) * (far - x)


def to_boundary(trial: Trial, far: Tensor, tolerance: float) -> Tensor:
    """The adversarial point nearest to each image on the way to `far`, by bisection; all rows halve alike."""
    norm = trial.threat.norm
    high = NORMS["linf"].size(far - trial.x) if norm == "linf" else torch.ones_like(trial.distance)
    low, width = torch.zeros_like(high), 1.0
    while width > tolerance:
        middle = (low + high) / 2
        hit = trial.look(between(trial.x, far, middle, norm)) < 0
        high, low = torch.where(hit, middle, high), torch.where(hit, low, middle)
        width /= 2
    return between(trial.x, far, high, norm)
