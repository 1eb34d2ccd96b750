"""Attacks of one gradient step, taken without the table of rows that attacks of many steps need.

Where the model is at hand and answers every image with finite logits that are right, a run of one step is a gradient, a
step and the final test; the bits are those of the long way, and only the bookkeeping is less.
"""

from collections.abc import Callable
from math import isfinite

import torch
from torch import Tensor

from models.attacks.core.access import Access
from models.attacks.core.logits import Clean, probabilities
from models.attacks.core.result import AttackResult, settle
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Criterion

Leap = Callable[[Tensor, Tensor, ThreatModel], Tensor]
"""Images, the gradient there and the threat -> images after the step."""


class Leapt:
    """What `settle` has to know of a finished run, as a Trial would say it."""

    has_soft = False

    def __init__(
        self, access: Access, x: Tensor, criterion: Criterion, threat: ThreatModel, clean: Clean, best: Tensor
    ):
        count, device = len(x), x.device
        self.access, self.whole, self.clean = access, (x, criterion, threat), clean
        self.wrong = self.broken = self.clean_soft = torch.zeros(count, dtype=torch.bool, device=device)
        unknown = torch.full((count,), torch.inf, device=device)
        one = torch.ones(count, dtype=torch.int64, device=device)
        self.found = {"best": best, "margin": unknown, "distance": unknown, "queries": one.clone()}
        self.found |= {"gradients": one, "steps": one, "flat": vanished(clean.gradient).long()}


def vanished(gradient: Tensor) -> Tensor:
    """(N,): the gradients that are zero everywhere."""
    return gradient.flatten(1).abs().amax(1) == 0


def slope_of(access: Access, criterion: Criterion, threat: ThreatModel, clean: Clean) -> Tensor:
    """The gradient of the criterion's loss at the clean images, which `clean` then keeps."""
    if clean.gradient is None:
        with torch.enable_grad():
            value = criterion.loss(clean.graph)
        clean.gradient = threat.masked(access.gradient(clean.leaf, value, keep=True).nan_to_num(0, 0, 0))
    return clean.gradient


def ordinary(clean: Clean, margin: Tensor) -> bool:
    """Whether every image has finite logits, not probabilities, and is not adversarial yet."""
    finite = isfinite(float(clean.logits.sum()))
    return finite and float(margin.amin()) >= 0 and not bool(probabilities(clean.logits).any())


def once(
    access: Access, x: Tensor, criterion: Criterion, threat: ThreatModel, clean: Clean, leap: Leap
) -> AttackResult | None:
    """The result of one step from each image; None where that takes more care."""
    if clean.graph is None or access.budget is not None or not 0 < len(x) == len(clean.logits):
        return None
    criterion.check(clean.logits)
    if not ordinary(clean, criterion.margin(clean.logits)):
        return None
    gradient = slope_of(access, criterion, threat, clean)
    best = threat.project(x, leap(x, gradient, threat))
    return settle(Leapt(access, x, criterion, threat, clean, best))
