"""Label-based attacks compared with libraries at equal queries, over three seeds: no fewer successes (at 99 %
confidence), and a median distance at most 15 % larger."""

import warnings

import numpy as np
import pytest
import torch

from models.attacks.core.access import LabelOracle, ScoreOracle
from tests.models.attacks.nets import cnn, victims
from tests.models.attacks.test_parity import in_foolbox, ours
from tests.models.attacks.test_parity_scores import least

pytestmark = pytest.mark.parity
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    foolbox = pytest.importorskip("foolbox")
    torchattacks = pytest.importorskip("torchattacks")
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

SEEDS = range(3)


class Counting(torch.nn.Module):
    """The CNN with a count of the images it was shown."""

    def __init__(self):
        super().__init__()
        self.net, self.asked = cnn(), 0

    def forward(self, x):
        self.asked += len(x)
        return self.net(x.float())


def distances(images, x):
    return (images - x).flatten(1).norm(dim=1)


def no_further(mine: list, theirs: list) -> None:
    """Compares distances pooled over the seeds: successes within the reference's median, and our median."""
    mine, theirs = torch.cat(mine), torch.cat(theirs)
    middle = theirs.median()
    assert mine.median() <= 1.15 * middle
    assert int((mine <= middle).sum()) >= least(int((theirs <= middle).sum()), len(theirs))


def foolbox_kind(name):
    return {
        "hopskipjump": lambda: foolbox.attacks.HopSkipJumpAttack(steps=6),
        "boundary": lambda: foolbox.attacks.BoundaryAttack(steps=700),
    }[name]()


@pytest.mark.parametrize("name", ["hopskipjump", "boundary"])
def test_boundary_attack_distance_is_no_larger_than_foolbox(name):
    (x, y), mine, theirs = victims(12), [], []
    for seed in SEEDS:
        net = Counting().eval()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            images, found = in_foolbox(foolbox_kind(name), x, y, net=net)
        budget = net.asked // len(x)
        result, _ = ours(name, x, y, access=lambda net, budget=budget: LabelOracle(net, budget), seeds=1000 * seed)
        assert found.all() and result.success.all() and int(result.queries.max()) <= budget
        theirs.append(distances(images, x))
        mine.append(result.distance)
    no_further(mine, theirs)


def test_hopskipjump_distance_is_no_larger_than_art():
    (x, y), mine, theirs = victims(12), [], []
    for seed in SEEDS:
        net = Counting().eval()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = torch.nn.CrossEntropyLoss()
            estimator = PyTorchClassifier(net, loss, (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")
            np.random.seed(seed)
            attack = evasion.HopSkipJump(estimator, norm=2, max_iter=6, max_eval=1000, verbose=False)
            aim = torch.nn.functional.one_hot(y, 10).numpy()
            images = torch.from_numpy(attack.generate(x.numpy(), aim))
        budget = net.asked // len(x)
        result, _ = ours("hopskipjump", x, y, access=lambda net, budget=budget: LabelOracle(net, budget), seeds=seed)
        assert result.success.all() and int(result.queries.max()) <= budget
        theirs.append(distances(images, x))
        mine.append(result.distance)
    no_further(mine, theirs)


def test_three_pixel_attack_succeeds_as_often_as_torchattacks():
    (x, y), mine, theirs = victims(24), 0, 0
    for seed in SEEDS:
        net = Counting().eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            np.random.seed(seed)
            images = torchattacks.OnePixel(net, pixels=3, steps=6, popsize=36)(x, y)
        steps = {"eps": 3, "steps": 6, "population": 36}
        access = lambda net, budget=net.asked // len(x): ScoreOracle(net, budget)  # noqa: E731
        result, _ = ours("onepixel", x, y, access=access, seeds=1000 * seed, **steps)
        mine += int(result.success.sum())
        theirs += int((cnn()(images).argmax(1) != y).sum())
    assert theirs > 0
    assert mine >= least(theirs, len(x) * len(SEEDS))
