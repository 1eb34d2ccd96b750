"""Exact answers on a linear model: the nearest adversarial image and the best image in a ball are known."""

import pytest
import torch
from torch import nn

from models.attacks.core.access import LabelOracle, ScoreOracle, WhiteBox
from models.attacks.core.hyperplane import step_to
from models.attacks.core.norms import NORMS
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified, Targeted
from models.registry import attacks

ACCESS = {"gradients": WhiteBox, "scores": ScoreOracle, "labels": LabelOracle}


class Linear(nn.Module):
    """Two classes, z = (f, -f) with f(x) = w . (x - 1/2) + b: the distance to the boundary is |f| over a dual norm."""

    def __init__(self, bias: float = 1.2, size: int = 12):
        super().__init__()
        draws = torch.Generator().manual_seed(3)
        self.register_buffer("w", torch.randn(1, size, size, generator=draws))
        self.bias = bias

    def forward(self, x):
        f = ((x - 0.5) * self.w).flatten(1).sum(1) + self.bias
        return torch.stack([f, -f], 1)


def images(count: int = 4) -> torch.Tensor:
    """Images around mid-grey, so that the pixel range does not matter near the boundary."""
    draws = torch.Generator().manual_seed(5)
    return 0.5 + 0.02 * (torch.rand(count, 1, 12, 12, generator=draws) - 0.5)


def distance(net: Linear, x: torch.Tensor, norm: str) -> torch.Tensor:
    w = net.w.abs().flatten()
    dual = {"l2": w.norm(), "linf": w.sum(), "l1": w.max(), "l0": None}[norm]
    return net(x)[:, 0].abs() / dual


MINIMAL = [
    ("deepfool", "l2", {}, 1.03),
    ("deepfool", "linf", {}, 1.05),
    ("ddn", "l2", {"steps": 200, "radius": 0.1}, 1.02),
    ("cw", "l2", {"steps": 300, "searches": 6, "weight": 0.01}, 1.05),
    ("fab", "l2", {"steps": 20}, 1.01),
    ("fab", "linf", {"steps": 20}, 1.01),
    ("fab", "l1", {"steps": 20}, 1.01),
    ("fab", "l2", {"steps": 20, "targets": 0}, 1.01),
    ("hopskipjump", "l2", {"steps": 25, "samples": 200}, 1.3),
    ("boundary", "l2", {"steps": 1500}, 5.0),
    ("zoo", "l2", {"steps": 150, "searches": 3, "weight": 0.1}, 1.2),
]


@pytest.mark.parametrize(("name", "norm", "config", "factor"), MINIMAL)
def test_minimum_norm_attack_finds_nearest_point_of_linear_boundary(name, norm, config, factor):
    net, x = Linear(), images()
    y = net(x).argmax(1)
    kind = attacks()[name]
    settings = {"norm": norm} if "norm" in kind.Config.model_fields else {}
    attack = kind(**settings, **config)
    result = attack.run(ACCESS[attack.access](net), x, Misclassified(y))
    nearest = distance(net, x, norm)
    assert result.success.all()
    assert (result.distance >= nearest * (1 - 1e-4)).all()
    assert (result.distance <= nearest * factor + 1e-5).all(), (result.distance / nearest).tolist()


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mifgsm", "apgd", "apgdt"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_bounded_attack_reaches_the_lowest_margin_in_the_ball(name, norm):
    kind = attacks()[name]
    if norm not in kind.norms:
        pytest.skip("a norm it does not know")
    net, x = Linear(bias=5.0), images()
    eps = {"linf": 0.05, "l2": 0.3}[norm]
    config = {"norm": norm} if "norm" in kind.Config.model_fields else {}
    result = kind(eps=eps, **config).run(WhiteBox(net), x, Misclassified(torch.zeros(4, dtype=torch.int64)))
    w = net.w.abs().flatten()
    lowest = net(x)[:, 0] - eps * (w.sum() if norm == "linf" else w.norm())
    slack = 0.02 * (net(x)[:, 0] - lowest)  # PGD approaches a corner of the l2 ball from a random start
    if lowest.max() > 0:
        assert (result.margin / 2 <= lowest + slack).all()
        assert not result.success.any()
    else:
        assert result.success.all()


def test_fgsm_l1_step_is_optimal_inside_the_pixel_range():
    net, x = Linear(bias=300.0), images()
    result = attacks()["fgsm"](norm="l1", eps=3.0).run(
        WhiteBox(net), x, Misclassified(torch.zeros(4, dtype=torch.int64))
    )
    delta = (result.images - x).flatten(1)
    room = torch.where(net.w.flatten() > 0, x.flatten(1), 1 - x.flatten(1))
    gain = net.w.abs().flatten()
    order = gain.argsort(descending=True)
    left, wanted = torch.full((4,), 3.0), torch.zeros(4)
    for pixel in order.tolist():
        used = torch.minimum(left, room[:, pixel])
        wanted, left = wanted + used * gain[pixel], left - used
    assert torch.allclose(-(delta * net.w.flatten()).sum(1), wanted, rtol=1e-4)


def test_targeted_minimum_distance_equals_the_formula():
    net, x = Linear(), images()
    result = attacks()["ddn"](steps=200, radius=0.1).run(WhiteBox(net), x, Targeted(torch.ones(4, dtype=torch.int64)))
    assert result.success.all()
    assert (result.distance <= distance(net, x, "l2") * 1.02).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_step_to_hyperplane_is_shortest_inside_the_pixel_range(norm):
    draws = torch.Generator().manual_seed(0)
    x, normal = torch.rand(200, 30, generator=draws), torch.randn(200, 30, generator=draws)
    normal[:, :3] = 0
    x[:, 10:15] = 0
    value = torch.randn(200, generator=draws) * 8
    d = step_to(x, normal, value, norm)
    gap = (normal * d).sum(1) + value
    room = torch.where(normal * torch.sign(value)[:, None] > 0, x, 1 - x) * (normal != 0)
    possible = (normal.abs() * room).sum(1) >= value.abs()
    assert possible.any()
    assert not possible.all()
    assert ((x + d) >= -1e-6).all()
    assert ((x + d) <= 1 + 1e-6).all()
    assert (gap[possible].abs() < 1e-4).all()
    assert torch.allclose(d[~possible].abs(), room[~possible], atol=1e-6)
    size = NORMS[norm].size
    for _ in range(200):  # no feasible change nearby is shorter
        other = d + 0.1 * torch.randn(d.shape, generator=draws)
        other = other.clamp(-x, 1 - x)
        reaches = ((normal * other).sum(1) + value) * torch.sign(value) <= 0
        assert (size(other[possible & reaches]) >= size(d[possible & reaches]) * (1 - 1e-4)).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_projections_are_idempotent_and_within_the_threat(norm):
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(50, 3, 6, 5, generator=draws)
    y = x + torch.randn(x.shape, generator=draws)
    eps = torch.linspace(0, 1, 50) if norm == "linf" else torch.linspace(0, 20, 50)
    threat = ThreatModel(norm, eps, mask=(torch.rand(1, 1, 6, 5, generator=draws) > 0.3).float())
    z = threat.project(x, y)
    assert (threat.distance(x, z) <= eps * (1 + 1e-6) + 1e-6).all()
    assert z.min() >= 0
    assert z.max() <= 1
    assert torch.equal(torch.where(threat.mask.bool(), x, z), x)
    assert torch.allclose(threat.project(x, z), z, atol=2e-6)


def test_loss_gradient_equals_finite_differences_of_cross_entropy():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    x = images(2)
    box, y = WhiteBox(net), torch.tensor([0, 2])
    leaf, logits = box.outputs_with_graph(x)
    with torch.enable_grad():
        found = box.gradient(leaf, Misclassified(y).loss(logits)).flatten(1)
    double = net.double()
    for pixel in (0, 17, 143):
        moved = x.double().flatten(1).clone()
        moved[:, pixel] += 1e-5
        back = x.double().flatten(1).clone()
        back[:, pixel] -= 1e-5
        up, down = (nn.functional.cross_entropy(double(part.view_as(x)), y, reduction="none") for part in (moved, back))
        assert torch.allclose(((up - down) / 2e-5).float(), found[:, pixel], rtol=1e-3, atol=1e-5)
