"""Success of an attack as a function of eps, and controls of equal size: random noise, the perturbation shuffled."""

from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor

from models.attacks.core.access import Access
from models.attacks.core.base import Attack
from models.attacks.core.logits import Clean
from models.attacks.core.norms import expand_to
from models.attacks.core.result import AttackResult, inside
from models.attacks.core.rng import RowRNG
from models.attacks.core.run import COUNTS, AttackRun
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Criterion


def epsilon_sweep(
    attack: Attack,
    access: Access,
    x: Tensor,
    criterion: Criterion,
    threat: ThreatModel,
    epsilons: Tensor,
    seeds: Tensor,
    *,
    compact: bool = True,
    clean: Clean | None = None,
    minimal_result: AttackResult | None = None,
) -> list[AttackResult]:
    """One result per column of `epsilons` (N, E), which ascends along each row.

    A minimum-norm attack answers every radius from one run: `minimal_result`, or a new one. Others continue from the
    image of the previous radius, and rows that are fooled already keep it, so success can only grow with eps.
    """
    steps = iterate_epsilon_sweep(
        attack,
        access,
        x,
        criterion,
        threat,
        epsilons,
        seeds,
        compact=compact,
        clean=clean,
        minimal_result=minimal_result,
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def iterate_epsilon_sweep(
    attack: Attack,
    access: Access,
    x: Tensor,
    criterion: Criterion,
    threat: ThreatModel,
    epsilons: Tensor,
    seeds: Tensor,
    *,
    compact: bool = True,
    clean: Clean | None = None,
    minimal_result: AttackResult | None = None,
) -> Generator[AttackRun, None, list[AttackResult]]:
    """`epsilon_sweep` as a generator that yields after each step."""
    how = {"compact": compact, "clean": clean}
    if attack.minimal:
        one = minimal_result or (yield from attack.iterate(access, x, criterion, threat.at(None), seeds, **how))
        return [_within(one, x, threat.at(eps)) for eps in epsilons.unbind(1)]
    runs: list[AttackResult] = []
    for eps in epsilons.unbind(1):
        before = runs[-1] if runs else None
        start, skip = (before.floats if before else None), (before.success if before and attack.warm_start else None)
        again = yield from attack.iterate(access, x, criterion, threat.at(eps), seeds, **how, start=start, skip=skip)
        runs.append(merge(before, again, before.success) if before and attack.warm_start else again)
    return runs


def merge(first: AttackResult, second: AttackResult, keep: Tensor) -> AttackResult:
    """Rows of `first` where `keep`, else of `second`; counts are added."""
    pairs = {name: (getattr(first, name), new) for name, new in vars(second).items()}
    counts = {name: old + new for name, (old, new) in pairs.items() if name in COUNTS}
    return AttackResult(
        **({name: torch.where(expand_to(keep, new), old, new) for name, (old, new) in pairs.items()} | counts)
    )


def _within(result: AttackResult, x: Tensor, threat: ThreatModel) -> AttackResult:
    """A minimum-norm result at one radius: its image where that lies within, else the clean image."""
    fits = result.success & inside(threat, x, result.images)
    return replace(
        result,
        success=fits,
        success_float=result.success_float & inside(threat, x, result.floats),
        images=torch.where(expand_to(fits, x), result.images, x),
        floats=torch.where(expand_to(fits, x), result.floats, x),
        logits=torch.where(expand_to(fits, result.logits), result.logits, result.clean_logits),
        distance=torch.where(fits, result.distance, 0),
    )


def noise(x: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
    """A control: `x` with random signs on every pixel, scaled to eps. An attack should do far better."""
    signs = threat.masked(RowRNG(seeds).signs(tuple(x.shape[1:]), "control"))
    if threat.norm == "l0":
        signs = threat.geometry.project(signs * RowRNG(seeds).uniform(tuple(x.shape[1:]), "place"), threat.radius(x))
        signs = signs.sign()
    else:
        signs = signs * expand_to(threat.radius(x) / threat.geometry.size(signs).clamp_min(1e-12), x)
    return threat.quantise(x, threat.project(x, x + signs))


def shuffled(x: Tensor, changed: Tensor, threat: ThreatModel, seeds: Tensor) -> Tensor:
    """A control of equal size in any norm: `x` plus the perturbation of `changed` with its pixels permuted.

    Only pixels that may change are permuted (as in Xie et al. 2017); values outside the pixel range are clipped.
    """
    order = RowRNG(seeds).uniform((x.shape[2] * x.shape[3],), "shuffle")
    if threat.mask is None:
        free = torch.ones_like(order, dtype=torch.bool)
    else:
        free = threat.mask.expand(len(x), -1, -1, -1).bool().any(1).flatten(1)
    # pixels that may not change keep their positions: they are sorted after all others, in order
    natural = torch.arange(order.shape[1], device=x.device).expand_as(order)
    origin = torch.where(free, order, 2.0 + natural).argsort(dim=1, stable=True)
    place = torch.where(free, 0, 1).argsort(dim=1, stable=True)
    index = torch.empty_like(origin).scatter(1, place, origin)
    delta = (changed - x).flatten(2)
    permuted = delta.gather(2, index[:, None].expand_as(delta)).view_as(x)
    return threat.at(None).quantise(x, (x + permuted).clamp(0, 1))
