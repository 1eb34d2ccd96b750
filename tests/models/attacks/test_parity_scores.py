"""Score-based attacks compared with libraries at equal queries: no fewer successes (at 99 % confidence)."""

import warnings

import pytest
import torch

from models.attacks.core.access import ScoreOracle
from tests.models.attacks.nets import cnn, victims
from tests.models.attacks.test_parity import ours

pytestmark = pytest.mark.parity
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox")
    torchattacks = pytest.importorskip("torchattacks")
    from foolbox.gradient_estimators import es_gradient_estimator

EPS, STEPS, SAMPLES, SEEDS = 0.12, 12, 32, range(3)


def least(theirs: int, tries: int) -> float:
    """The smallest count not significantly below `theirs`: two samples, one-sided, 99 %."""
    rate = (theirs + 1) / (tries + 2)
    return theirs - 2.326 * (2 * tries * rate * (1 - rate)) ** 0.5


def fooled(name, count, **config) -> int:
    x, y = victims(count)
    found = [
        ours(name, x, y, access=ScoreOracle, eps=EPS, steps=STEPS, samples=SAMPLES, seeds=1000 * seed, **config)[0]
        for seed in SEEDS
    ]
    assert all(int(one.queries.max()) <= STEPS * (SAMPLES + 1) + 2 for one in found)
    return sum(int(one.success.sum()) for one in found)


def test_nes_fools_no_fewer_than_foolbox():
    """The reference sums losses over the batch before weighting the probes, so it gets one image at a time."""
    count, hits = 16, 0
    (x, y), kind = victims(count), foolbox.attacks.LinfBasicIterativeAttack
    estimated = es_gradient_estimator(kind, samples=SAMPLES, sigma=0.001, bounds=(0, 1), clip=True)
    model = foolbox.PyTorchModel(cnn(), bounds=(0, 1), device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for seed in SEEDS:
            torch.manual_seed(seed)
            for image, label in zip(x.split(1), y.split(1), strict=True):
                attack = estimated(abs_stepsize=0.02, steps=STEPS, random_start=False)
                hits += int(attack(model, image, label, epsilons=EPS)[2].sum())
    assert hits > 0
    assert fooled("nes", count, step=0.02) >= least(hits, count * len(SEEDS))


def test_spsa_fools_no_fewer_than_torchattacks():
    count, hits = 50, 0
    x, y = victims(count)
    with torch.random.fork_rng(devices=[]):
        for seed in SEEDS:
            torch.manual_seed(seed)
            attack = torchattacks.SPSA(cnn(), eps=EPS, nb_iter=STEPS, nb_sample=SAMPLES // 2)
            hits += int((cnn()(attack(x, y)).argmax(1) != y).sum())
    assert hits > 0
    assert fooled("spsa", count) >= least(hits, count * len(SEEDS))
