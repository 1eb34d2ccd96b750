"""A run of one step by the short way says what the long way says, to the bit."""

from dataclasses import fields

import pytest
import torch

from models.attacks.core.access import WhiteBox
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified, Targeted
from models.registry import attacks
from tests.models.attacks.nets import cnn, digits, victims


def both(criterion, x, norm="linf", eps=20 / 255, net=None, mask=None):
    attack, threat = attacks()["fgsm"](norm=norm, eps=eps), ThreatModel(norm, eps, 256, mask)
    watched = []
    short = attack.run(WhiteBox(net or cnn()), x, criterion, threat)
    long = attack.run(WhiteBox(net or cnn()), x, criterion, threat, on_step=lambda *step: watched.append(step))
    return short, long, watched


def same(one, other):
    return [f.name for f in fields(one) if not torch.equal(getattr(one, f.name), getattr(other, f.name))]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 20 / 255), ("l2", 0.7), ("l1", 4.0)])
@pytest.mark.parametrize("aimed", [False, True])
def test_the_short_way_gives_the_bits_of_the_long_way(norm, eps, aimed):
    x, y = victims(24)
    short, long, watched = both(Targeted((y + 1) % 10) if aimed else Misclassified(y), x, norm, eps)
    assert same(short, long) == []
    assert aimed or 0 < int(short.success.sum()) < 24
    assert watched


def test_a_mask_holds_on_the_short_way():
    x, y = victims(8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    short, long, _ = both(Misclassified(y), x, eps=90 / 255, mask=mask)
    assert same(short, long) == []
    assert torch.equal(short.images[..., 4:], x[..., 4:])
    assert (short.images != x).any()


def test_images_out_of_the_ordinary_take_the_long_way():
    x, y = (part[1297:] for part in digits())
    short, long, _ = both(Misclassified(y[:300]), x[:300])
    assert short.initially_wrong.any()
    assert same(short, long) == []
    soft = torch.nn.Sequential(cnn(), torch.nn.Softmax(1)).eval()
    short, long, _ = both(Misclassified(y[:20]), x[:20], net=soft)
    assert short.soft.all()
    assert same(short, long) == []


def test_a_model_is_asked_twice_about_an_image_that_it_gets_right():
    x, y = victims(3)
    shown = []

    class Counting(torch.nn.Module):
        def forward(self, images):
            shown.append(len(images))
            return cnn()(images)

    attacks()["fgsm"](eps=1 / 255).run(WhiteBox(Counting().eval()), x, Misclassified(y))
    assert shown == [3, 3]
