"""Dense attacks compared with adversarial-library."""

import sys
from importlib.util import find_spec
from unittest import mock

import pytest
import torch
from torch import nn

from models.attacks.core.access import WhiteBox
from models.attacks.criteria.segmentation import FractionOfPixels
from models.attacks.dag import DAG
from tests.models.attacks.fields import fcn, scenes

pytestmark = pytest.mark.parity
# its plots and pretrained networks, which it imports at the top
BESIDE = "visdom", "torchvision", "torchvision.models", "torchvision.transforms"
ABSENT = {name: mock.MagicMock() for name in BESIDE if find_spec(name.split(".")[0]) is None}
sys.modules.update(ABSENT)
try:
    reference = pytest.importorskip("adv_lib.attacks.segmentation.dense_adversary")
finally:
    for name in ABSENT:
        del sys.modules[name]


class Centred(nn.Module):
    """The network, as a function of pixels."""

    def forward(self, x):
        return fcn()(x - 0.45)


@pytest.mark.parametrize("targeted", [False, True])
def test_dag_takes_the_steps_of_the_reference(targeted):
    """The reference clips the shown image but not the perturbation, so pixels here are far from 0 and 1."""
    x, masks = scenes(4, seed=5)
    x = x.clamp(0.3, 0.7)
    net, gamma, steps, last = Centred().eval(), 0.5 / 255, 20, {}
    labels = torch.full_like(masks, 2) if targeted else masks
    theirs = {}
    original = torch.Tensor.clamp

    def watched(tensor, *bounds, **named):
        if tensor.shape == x.shape and bounds == (0, 1):
            theirs["x"] = tensor.detach().clone()
        return original(tensor, *bounds, **named)

    with mock.patch.object(torch.Tensor, "clamp", watched):
        reference.dag(net, x, labels, targeted=targeted, adv_threshold=1.1, max_iter=steps + 1, γ=gamma)
    criterion = FractionOfPixels(masks, labels if targeted else None, threshold=1.0)
    attack = DAG(steps=steps, gamma=gamma)
    attack.run(
        WhiteBox(net),
        x,
        criterion,
        attack.threat(),
        on_step=lambda _, attack_run: last.update(x=attack_run.state.x),
        compact=False,
    )
    assert (theirs["x"] - x).abs().max() > 10 * gamma
    assert (last["x"] - theirs["x"]).abs().max() <= 1e-6


def test_dag_stops_no_later_than_the_reference():
    x, masks = scenes(4, seed=5)
    net, gamma = Centred().eval(), 2 / 255
    theirs = reference.dag(net, x, masks, max_iter=120, γ=gamma)
    attack = DAG(steps=120, gamma=gamma)
    ours = attack.run(WhiteBox(net), x, FractionOfPixels(masks), attack.threat(256))
    right = [(net(images).argmax(1) == masks).flatten(1).float().mean(1) for images in (theirs, ours.images)]
    assert ((right[0] <= 0.01) <= (right[1] <= 0.01)).all()
    assert ours.success.all()
