"""The contract of all attacks on classifiers; a new file in `models/attacks/` is tested without any change here."""

import copy

import pytest
import torch
from torch import nn

from models import registry
from models.attacks.core.access import LabelOracle, ScoreOracle, WhiteBox
from models.attacks.criteria.classification import Misclassified, Targeted
from models.capabilities import Classifies
from tests.models.attacks.nets import cnn, digits, victims


def attacks() -> dict[str, type]:
    """Attacks on classifiers; the others have tests of their own."""
    return {name: kind for name, kind in registry.attacks().items() if Classifies in kind.victims}


QUICK = {
    "autoattack": {"steps": 5, "targets": 2, "queries": 20},
    "apgd": {"steps": 8},
    "apgdt": {"steps": 6, "targets": 2},
    "boundary": {"steps": 30},
    "cw": {"steps": 40, "searches": 2, "weight": 10.0, "learning_rate": 0.3},
    "ddn": {"steps": 15},
    "deepfool": {"steps": 8},
    "ead": {"steps": 30, "searches": 2, "weight": 10.0},
    "fab": {"steps": 8, "targets": 2},
    "hopskipjump": {"steps": 2},
    "nes": {"steps": 5, "samples": 10},
    "onepixel": {"steps": 2, "population": 10},
    "pgd": {"steps": 5},
    "spsa": {"steps": 3, "samples": 8},
    "square": {"queries": 30},
    "zoo": {"steps": 4, "searches": 1},
}
"""Settings that make slow attacks fast; the contract does not depend on them."""
EPS = {"linf": 16 / 255, "l2": 0.8, "l1": 5.0, "l0": 6.0}
CASES = [(name, norm) for name, kind in attacks().items() for norm in kind.norms]


def make(name, norm, **config):
    kind = attacks()[name]
    if "norm" in kind.Config.model_fields:
        config["norm"] = norm
    if not kind.minimal:
        config.setdefault("eps", EPS[norm])
    return kind(**QUICK.get(name, {}), **config)


def access_for(attack, net=None):
    net = net or cnn()
    return {"gradients": WhiteBox, "scores": ScoreOracle, "labels": LabelOracle}[attack.access](net)


def run(name, norm, x, criterion, *, levels=None, net=None, seeds=0, **config):
    attack = make(name, norm, **config)
    return attack.run(access_for(attack, net), x, criterion, attack.threat(levels), seeds, compact=False)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_results_lie_in_ball_and_box_and_report_true_success(name, norm):
    x, y = victims(8)
    result = run(name, norm, x, Misclassified(y))
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    if not attacks()[name].minimal:
        assert (result.distance <= EPS[norm] * (1 + 1e-6) + 1e-6).all()
    assert torch.equal(result.success, cnn()(result.images).argmax(1) != y)
    assert (result.queries >= 1).all()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_image_gets_the_same_result_alone_and_in_any_batch(name, norm):
    x, y = victims(6)
    seeds = torch.arange(6) * 7919
    together = run(name, norm, x, Misclassified(y), levels=256, seeds=seeds)
    order = torch.tensor([5, 5, 3, 0, 4, 5])
    shuffled = run(name, norm, x[order], Misclassified(y[order]), levels=256, seeds=seeds[order])
    for field in ("images", "success", "queries", "gradients", "distance", "floats"):
        assert torch.equal(getattr(together, field)[order], getattr(shuffled, field)), field


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_removing_finished_rows_changes_no_result(name, norm):
    x, y = victims(6)
    attack = make(name, norm)
    whole = attack.run(access_for(attack), x, Misclassified(y), compact=False)
    narrowed = attack.run(access_for(attack), x, Misclassified(y), compact=True)
    assert torch.equal(whole.success, narrowed.success)
    assert torch.allclose(whole.distance, narrowed.distance, atol=2e-3)


@pytest.mark.parametrize("name", attacks())
def test_model_and_random_streams_are_unchanged(name):
    x, y = victims(3)
    net = copy.deepcopy(cnn()).requires_grad_(True).train()
    net[1].eval()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    flags = [part.training for part in net.modules()]
    state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    stream = torch.random.get_rng_state()
    attack = make(name, attacks()[name].norms[0])
    box = (
        WhiteBox(net, shape=(1, 8, 8))
        if attack.access == "gradients"
        else access_for(attack, copy.deepcopy(net).eval())
    )
    attack.run(box, x, Misclassified(y))
    assert [part.training for part in net.modules()] == flags
    assert all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), stream)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_eps_0_changes_nothing(name, norm):
    x, y = victims(3)
    result = run(name, norm, x, Misclassified(y), levels=256, eps=0.0)
    assert torch.equal(result.images, x)
    assert not result.success.any()


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_misclassified_image_is_returned_unchanged_after_one_query(name, norm):
    x, y = victims(3)
    result = run(name, norm, x, Misclassified((y + 1) % 10), levels=256)
    assert torch.equal(result.images, x)
    assert result.initially_wrong.all()
    assert not result.success.any()
    assert result.queries.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_results_are_8_bit_images_within_eps(name, norm):
    x, y = victims(8)
    result = run(name, norm, x, Misclassified(y), levels=256)
    pixels = (result.images * 255).round()
    assert torch.equal(pixels / 255, result.images)
    if norm == "linf" and not attacks()[name].minimal:
        assert (pixels - (x * 255).round()).abs().max() <= 16
    again = cnn()(pixels / 255).argmax(1)
    assert torch.equal(result.success, again != y)


@pytest.mark.parametrize("name", [name for name, kind in attacks().items() if kind.targeted])
def test_targeted_success_means_target_class(name):
    x, y = victims(6)
    targets = (y + 3) % 10
    norm = attacks()[name].norms[0]
    big = {} if attacks()[name].minimal else {"eps": {"linf": 0.4, "l2": 4.0, "l1": 20.0, "l0": 30.0}[norm]}
    result = run(name, norm, x, Targeted(targets), **big)
    assert torch.equal(result.success, cnn()(result.images).argmax(1) == targets)
    if attacks()[name].access == "gradients" and name != "fgsm":
        assert result.success.any()


@pytest.mark.parametrize("name", attacks())
def test_query_budget_is_never_exceeded(name):
    x, y = victims(4)
    attack = make(name, attacks()[name].norms[0])
    shown = []
    counted = nn.Module()
    counted.forward = lambda images: (shown.append(len(images)), cnn()(images))[1]
    box = {"gradients": WhiteBox, "scores": ScoreOracle, "labels": LabelOracle}[attack.access](counted.eval(), budget=9)
    result = attack.run(box, x[:1], Misclassified(y[:1]), attack.threat(256))
    assert sum(shown) <= 9
    assert int(result.queries) == sum(shown)


@pytest.mark.parametrize("name", attacks())
@pytest.mark.parametrize("count", [0, 1])
def test_batches_of_no_image_and_one_image(name, count):
    x, y = victims(1)
    result = run(name, attacks()[name].norms[0], x[:count], Misclassified(y[:count]))
    assert result.images.shape == (count, 1, 8, 8)


@pytest.mark.parametrize(("classes", "channels", "size"), [(2, 1, (8, 8)), (3, 3, (6, 9)), (2, 3, (7, 5))])
@pytest.mark.parametrize(("name", "norm"), CASES)
def test_other_shapes_and_few_classes(name, norm, classes, channels, size):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(classes)).eval()
        x = (torch.rand(3, channels, *size) * 255).round() / 255
        net(x)
    y = net(x).argmax(1)
    result = run(name, norm, x, Misclassified(y), net=net, levels=256)
    assert torch.isfinite(result.images).all()
    assert torch.equal(result.success, net(result.images).argmax(1) != y)


@pytest.mark.parametrize(("name", "norm"), CASES)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images(name, norm, value):
    x = torch.full((2, 1, 8, 8), value)
    y = cnn()(x).argmax(1)
    result = run(name, norm, x, Misclassified(y), levels=256)
    assert torch.isfinite(result.images).all()
    if attacks()[name].minimal and attacks()[name].access == "gradients" and norm == "l2":
        assert result.success.all()


@pytest.mark.parametrize("name", attacks())
def test_nonfinite_outputs_are_neither_success_nor_robustness(name):
    x, y = victims(2)

    class Broken(nn.Module):
        def forward(self, images):
            return cnn()(images) * torch.nan

    kind = attacks()[name]
    if kind.access == "labels":
        pytest.skip("a label is always a label")
    result = run(name, kind.norms[0], x, Misclassified(y), net=Broken().eval())
    assert result.nonfinite.all()
    assert not result.success.any()
    assert torch.equal(result.images, x)


def test_every_attack_describes_itself():
    for name, kind in attacks().items():
        assert kind.summary
        assert kind.norms
        assert name == kind.name
        default = kind()
        assert default.threat().norm == kind.norms[0]
    assert len(digits()[0]) == 1797
