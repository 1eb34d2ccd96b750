"""Batched targets and batched squares give the results of the sequential runs."""

import pytest
import torch

from models.attacks.core.access import WhiteBox
from models.attacks.core.hyperplane import water_level
from models.attacks.criteria.classification import Misclassified
from models.registry import attacks
from tests.models.attacks.nets import cnn, victims


def both(name, x, y, **config):
    attack = attacks()[name](**config)
    runs = [attack.run(WhiteBox(cnn()), x, Misclassified(y), seeds=5, compact=how) for how in (False, True)]
    return runs


def test_batched_square_equals_sequential_with_few_more_queries():
    x, y = victims(12)
    alone, ahead = both("square", x, y, eps=0.06, queries=700)
    assert torch.equal(alone.success, ahead.success)
    assert 0 < int(alone.success.sum()) < 12
    assert torch.allclose(alone.floats, ahead.floats, atol=1e-6)
    assert (ahead.queries <= 1.25 * alone.queries + 16).all()


def test_batched_square_skips_no_op_and_repeated_squares():
    """Late in a search three of four squares are repeats or change nothing."""
    x, y = victims(6)
    alone, ahead = both("square", x, y, eps=0.004, queries=1500, rescale=False)
    assert not ahead.success.any()
    assert torch.allclose(alone.floats, ahead.floats, atol=1e-6)
    assert (alone.queries == 1502).all()
    assert (ahead.queries < 0.75 * alone.queries).all()


def test_batched_square_counts_every_image_shown():
    x, y = victims(5)
    shown = []

    class Counting(torch.nn.Module):
        def forward(self, images):
            shown.append(len(images))
            return cnn()(images)

    result = attacks()["square"](eps=0.02, queries=200).run(WhiteBox(Counting().eval()), x, Misclassified(y))
    assert sum(shown) == int(result.queries.sum())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batched_targets_equal_sequential_targets(norm):
    x, y = victims(12)
    turn, beside = both("apgdt", x, y, norm=norm, eps={"linf": 0.08, "l2": 0.3}[norm], steps=8, targets=5)
    assert torch.equal(turn.success, beside.success)
    assert 0 < int(turn.success.sum()) < 12
    # one that falls to a late target has paid for all of them, one that falls to none for as many either way
    lost = ~turn.success
    assert torch.equal(turn.gradients[lost], beside.gradients[lost])
    assert torch.allclose(turn.margin[lost], beside.margin[lost], atol=0.05, rtol=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_fab_batched_over_targets_equals_sequential(norm):
    x, y = victims(12)
    turn, beside = both("fab", x, y, norm=norm, steps=10, targets=4)
    assert turn.success.all()
    assert beside.success.all()
    assert torch.allclose(turn.distance, beside.distance, rtol=5e-3)
    assert torch.equal(turn.gradients, beside.gradients)


def by_sorting(weight, cap, total):
    """The water level by a loop over the sorted caps."""
    for number in sorted(cap):
        if sum(w * min(number, c) for w, c in zip(weight, cap, strict=True)) >= total:
            below = max((c for c in cap if c < number), default=0.0)
            free = sum(w for w, c in zip(weight, cap, strict=True) if c > below)
            return below + (total - sum(w * min(below, c) for w, c in zip(weight, cap, strict=True))) / free
    return float("inf")


def test_water_level_solves_the_sum():
    draws = torch.Generator().manual_seed(3)
    weight, cap = torch.rand(40, 30, generator=draws), torch.rand(40, 30, generator=draws)
    weight = weight * (torch.rand(40, 30, generator=draws) > 0.2)
    total = (weight * cap).sum(1) * torch.linspace(0.01, 1.2, 40)
    found = water_level(weight, cap, total)[:, 0]
    wanted = torch.tensor([by_sorting(w.tolist(), c.tolist(), float(t)) for w, c, t in zip(weight, cap, total)])  # noqa: B905
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert torch.isinf(found).sum() == torch.isinf(wanted).sum() > 3
