"""Compared with the Adversarial Robustness Toolbox: the same steps from the same start give the same images."""

import warnings
from functools import cache

import pytest
import torch

from tests.models.attacks.nets import cnn
from tests.models.attacks.test_parity import doubtful, ours

pytestmark = pytest.mark.parity
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    evasion = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

WALK = {"eps": 0.1, "step": 0.02, "steps": 10, "stop_early": False}


@cache
def estimator():
    loss = torch.nn.CrossEntropyLoss()
    return PyTorchClassifier(cnn(), loss, (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu")


def in_art(name, x, aim, **config):
    """`aim` are the labels, or the targets if `targeted`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        attack = getattr(evasion, name)(estimator(), batch_size=len(x), **config)
        return torch.from_numpy(attack.generate(x.numpy(), torch.nn.functional.one_hot(aim, 10).numpy()))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_steps_of_linf_equal_art(name, targeted):
    x, y = doubtful(64)
    target = (y + 1) % 10 if targeted else None
    quiet = {"eps": 0.1, "targeted": targeted}
    walk = {"eps_step": 0.02, "max_iter": 10, "verbose": False}
    kind, theirs, mine = {
        "fgsm": ("FastGradientMethod", {}, {"eps": 0.1}),
        "bim": ("BasicIterativeMethod", walk, WALK),
        "pgd": ("ProjectedGradientDescent", {**walk, "num_random_init": 0}, {**WALK, "random_start": False}),
    }[name]
    images = in_art(kind, x, y if target is None else target, **quiet, **theirs)
    result, last = ours(name, x, y, target=target, **mine)
    last = result.images if name == "fgsm" else last
    assert (last - images).abs().max() <= 1e-6
    guess = cnn()(images).argmax(1)
    assert (result.success >= (guess != y if target is None else guess == target)).all()


def test_pgd_l2_fools_no_fewer_than_art():
    """ART clips to the box before it projects, so its images differ."""
    x, y = doubtful(64)
    images = in_art("ProjectedGradientDescent", x, y, norm=2, eps=0.8, eps_step=0.2, max_iter=10, verbose=False)
    result, _ = ours("pgd", x, y, eps=0.8, norm="l2", step=0.2, steps=10, random_start=False)
    assert result.success.sum() >= (cnn()(images).argmax(1) != y).sum()
