"""Attacks built from attacks: sequence, restarts, quantised, bisect (smallest eps); expectation over transformation."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from types import SimpleNamespace

import torch
from torch import Tensor

from models.attacks.core.access import Access, WhiteBox
from models.attacks.core.base import Attack
from models.attacks.core.result import AttackResult
from models.attacks.core.run import AttackRun
from models.attacks.core.sweep import merge
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Criterion


class Sequence(Attack):
    """Several attacks in turn, each on the images on which the previous ones failed."""

    @property
    @abstractmethod
    def parts(self) -> list[Attack]:
        """The attacks, in order."""

    def steps(self, run: AttackRun) -> Iterator[None]:
        for part in self.parts:
            run.state, run.paused = SimpleNamespace(), torch.zeros_like(run.paused)
            yield from part.steps(run)


class _Chain(Sequence):
    parts: list[Attack] = []


def sequence(*parts: Attack) -> Attack:
    """The attacks in turn, with the threat model of the first and the access of the one that needs most."""
    chain = _Chain.__new__(_Chain)
    chain.config, chain.norms, chain.minimal = parts[0].config, parts[0].norms, parts[0].minimal
    chain.access = "gradients" if any(part.access == "gradients" for part in parts) else parts[0].access
    chain.targeted, chain.name = all(part.targeted for part in parts), "+".join(part.name for part in parts)
    chain.parts = list(parts)
    return chain


class _Restarts(_Chain):
    def steps(self, run: AttackRun) -> Iterator[None]:
        for number, part in enumerate(self.parts):
            run.seeds = run.seeds + number * 1_000_003
            run.state, run.paused = SimpleNamespace(), torch.zeros_like(run.paused)
            yield from part.steps(run)


def restarts(attack: Attack, count: int) -> Attack:
    """The attack `count` times with different random numbers, each time on the images not yet adversarial."""
    chain = sequence(*[attack] * count)
    chain.__class__ = _Restarts
    return chain


def quantised(attack: Attack) -> Attack:
    """The attack with rounding in every step: the model sees 8-bit images only, so no success is lost at the end."""
    rounded = copy(attack)
    rounded.quantise_inputs = True
    return rounded


class Averaged(WhiteBox):
    """Expectation over transformation (Athalye et al. 2018): outputs are means over `count` transformations.

    `transform(images, k)` is the k-th transformation, the same for all rows or a function of each row alone.
    """

    def __init__(self, access: WhiteBox, transform: Callable[[Tensor, int], Tensor], count: int):
        inner = access.function
        Access.__init__(
            self, lambda x: torch.stack([inner(transform(x, k)) for k in range(count)]).mean(0), access.budget
        )
        self.served = self.function


def eot(access: WhiteBox, count: int, transform: Callable[[Tensor, int], Tensor]) -> WhiteBox:
    """The access with outputs averaged over `count` random transformations."""
    return Averaged(access, transform, count)


def bisect(
    attack: Attack,
    access: Access,
    x: Tensor,
    criterion: Criterion,
    threat: ThreatModel,
    seeds: Tensor | int = 0,
    *,
    high: float = 1.0,
    tolerance: float = 1 / 255,
) -> AttackResult:
    """The smallest eps up to `high` at which a bounded attack succeeds, per image, by bisection to `tolerance`."""
    low, top = torch.zeros(len(x), device=x.device), torch.full((len(x),), high, device=x.device)
    best = attack.run(access, x, criterion, threat.at(top), seeds)
    top = torch.where(best.success, best.distance.clamp_max(high), top)
    while bool((best.success & (top - low > tolerance)).any()):
        middle = (low + top) / 2
        result = attack.run(access, x, criterion, threat.at(middle), seeds, skip=~best.success)
        closer = result.success & best.success
        best = merge(result, best, closer)
        top = torch.where(closer, torch.minimum(middle, result.distance), top)
        low = torch.where(closer, low, middle)
    return best
