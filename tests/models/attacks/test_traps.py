"""Known pitfalls of attack libraries: masked gradients, probabilities, dropout, batch norm, rounding."""

import pytest
import torch
from torch import nn

from models.attacks.core import combine
from models.attacks.core.access import LabelOracle, Live, ScoreOracle, WhiteBox
from models.attacks.core.freeze import with_folded_batch_norm
from models.attacks.core.rng import RowRNG
from models.attacks.core.sweep import epsilon_sweep, noise
from models.attacks.core.threat import ThreatModel
from models.attacks.criteria.classification import Misclassified, Targeted
from models.attacks.criteria.segmentation import FractionOfPixels
from models.registry import attacks
from models.types import ConfigError, InputError
from tests.models.attacks.nets import cnn, victims


class Wrapped(nn.Module):
    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x):
        return self.change(self.net(x))


def robust(net, name="pgd", access=WhiteBox, **config):
    x, y = victims(64)
    config = {"eps": 0.1, "steps": 10, **config}
    return int((~attacks()[name](**config).run(access(net), x, Misclassified(y)).success).sum())


def test_scaled_logits_do_not_stop_the_attack():
    assert abs(robust(Wrapped(cnn(), lambda z: 1000 * z).eval()) - robust(cnn())) <= 3


def test_model_with_softmax_output_is_attacked_and_reported():
    x, y = victims(64)
    soft = Wrapped(cnn(), lambda z: (z / 10).softmax(1)).eval()
    plain = Wrapped(cnn(), lambda z: z / 10).eval()
    result = attacks()["pgd"](eps=0.1, steps=10).run(WhiteBox(soft), x, Misclassified(y))
    assert result.probabilities.all()
    assert abs(int((~result.success).sum()) - robust(plain)) <= 1


def test_zero_gradients_are_counted():
    x, y = victims(8)
    stairs = Wrapped(nn.Sequential(Wrapped(nn.Identity(), lambda x: (x * 8).round() / 8), cnn()), lambda z: z).eval()
    result = attacks()["pgd"](eps=0.1, steps=4).run(WhiteBox(stairs), x, Misclassified(y))
    assert (result.zero_gradient[~result.success] == result.gradients[~result.success]).all()


def test_model_without_gradient_raises_input_error():
    x, y = victims(2)
    dead = Wrapped(cnn(), lambda z: z.detach()).eval()
    with pytest.raises(InputError, match="no gradient"):
        attacks()["fgsm"](eps=0.1).run(WhiteBox(dead), x, Misclassified(y))


def test_model_in_training_is_attacked_in_eval_mode_and_restored():
    x, y = victims(16)
    net = cnn()
    expected = attacks()["bim"](eps=0.05).run(WhiteBox(net), x, Misclassified(y))
    import copy

    training = copy.deepcopy(net).requires_grad_(True).train()
    training[1].eval()
    before = [part.training for part in training.modules()]
    found = attacks()["bim"](eps=0.05).run(Live(training), x, Misclassified(y))
    assert torch.equal(found.images, expected.images)
    assert [part.training for part in training.modules()] == before
    assert int(training[1].num_batches_tracked) == int(net[1].num_batches_tracked)


def test_folding_batch_norm_changes_no_logit_and_removes_it():
    call = lambda net, x: net(x)  # noqa: E731
    merged = with_folded_batch_norm(cnn(), call, (1, 8, 8))
    x, _ = victims(32)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in merged.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in cnn().modules())
    assert torch.allclose(merged(x), cnn()(x), atol=1e-4)


def test_batch_norm_that_does_not_follow_a_layer_directly_stays():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3)).eval()
    assert any(
        isinstance(part, nn.BatchNorm2d) for part in with_folded_batch_norm(net, lambda n, x: n(x), (1, 8, 8)).modules()
    )


@pytest.mark.parametrize(("name", "factor"), [("deepfool", 1.05), ("ddn", 1.01)])
def test_minimum_norm_success_survives_rounding_to_8_bits(name, factor):
    x, y = victims(64)
    floats = attacks()[name]().run(WhiteBox(cnn()), x, Misclassified(y))
    attack = attacks()[name]()
    sent = attack.run(WhiteBox(cnn()), x, Misclassified(y), attack.threat(levels=256))
    assert floats.success.all()
    assert sent.success.all()
    assert sent.success_float.all()
    rounded = cnn()((floats.images * 255).round() / 255).argmax(1) != y
    assert rounded.float().mean() < 0.95, "rounding alone undoes some, else this shows nothing"
    assert sent.distance.median() <= factor * floats.distance.median()


def test_rounding_does_not_exceed_eps_between_two_levels():
    x, y = victims(16)
    attack = attacks()["pgd"](eps=0.1, steps=5)
    result = attack.run(WhiteBox(cnn()), x, Misclassified(y), attack.threat(levels=256))
    assert (result.images - x).abs().max() <= 25 / 255 + 1e-6


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_rounding_stays_inside_l2_l1_and_l0_balls(norm):
    x, y = victims(32)
    attack = attacks()["pgd"](norm=norm, eps=0.7, steps=5)
    result = attack.run(WhiteBox(cnn()), x, Misclassified(y), attack.threat(levels=256))
    assert (result.distance <= 0.7 * (1 + 1e-5)).all()
    assert (result.distance > 0.5).any()


def test_perturbation_stays_inside_the_mask():
    x, y = victims(8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    for name, norm in (
        ("pgd", "linf"),
        ("apgd", "l2"),
        ("square", "linf"),
        ("ddn", "l2"),
        ("fab", "linf"),
        ("nes", "linf"),
    ):
        config = {} if attacks()[name].minimal else {"eps": 0.2 if norm == "linf" else 2.0}
        config |= {"queries": 20} if name == "square" else {"steps": 5}
        config |= {} if name == "ddn" else {"norm": norm}
        attack = attacks()[name](**config)
        threat = ThreatModel(norm, config.get("eps"), mask=mask)
        access = ScoreOracle(cnn()) if attack.access == "scores" else WhiteBox(cnn())
        result = attack.run(access, x, Misclassified(y), threat)
        assert torch.equal(result.images[..., 4:], x[..., 4:]), name
        assert not torch.equal(result.images, x)


def test_success_grows_with_eps_and_is_no_worse_than_single_runs():
    x, y = victims(48)
    radii = torch.tensor([0.0, 0.02, 0.05, 0.08, 0.12])
    for name in ("pgd", "deepfool"):
        attack = attacks()[name](**({"steps": 10} if name == "pgd" else {"norm": "linf"}))
        threat = ThreatModel("linf", None if attack.minimal else 0.1)
        runs = epsilon_sweep(
            attack, WhiteBox(cnn()), x, Misclassified(y), threat, radii.expand(48, -1), torch.arange(48)
        )
        hits = torch.stack([run.success for run in runs], 1)
        assert (hits[:, 1:] >= hits[:, :-1]).all()
        assert not hits[:, 0].any()
        for column, eps in enumerate(radii.tolist()):
            assert (runs[column].distance <= eps + 1e-6).all()
            if name == "pgd" and eps:
                single = attacks()["pgd"](steps=10, eps=eps).run(WhiteBox(cnn()), x, Misclassified(y))
                assert hits[:, column].sum() >= single.success.sum() - 1


def test_random_signs_do_far_less_than_the_attack():
    x, y = victims(200)
    threat = ThreatModel("linf", 24 / 255, levels=256)
    control = noise(x, threat, torch.arange(200))
    assert ((control - x).abs().flatten(1).amax(1) <= 24 / 255 + 1e-6).all()
    fooled = (cnn()(control).argmax(1) != y).sum()
    attacked = attacks()["fgsm"](eps=24 / 255).run(WhiteBox(cnn()), x, Misclassified(y), threat).success.sum()
    assert attacked > 5 * fooled


def test_restarts_and_sequences_succeed_at_least_as_often():
    x, y = victims(64)
    one = attacks()["pgd"](eps=0.09, steps=3)
    box = WhiteBox(cnn())
    single = one.run(box, x, Misclassified(y)).success
    several = combine.restarts(one, 4).run(box, x, Misclassified(y)).success
    chain = (
        combine.sequence(one, attacks()["autoattack"](eps=0.09, steps=10, targets=3, queries=10))
        .run(box, x, Misclassified(y))
        .success
    )
    assert (several >= single).all()
    assert (chain >= single).all()
    assert chain.sum() > single.sum()


def test_quantised_attack_shows_the_model_8_bit_images_only():
    x, y = victims(8)
    seen = []

    class Watched(nn.Module):
        def forward(self, images):
            seen.append(images.detach())
            return cnn()(images)

    attack = combine.quantised(attacks()["pgd"](eps=0.1, steps=4))
    attack.run(WhiteBox(Watched().eval()), x, Misclassified(y), attack.threat(levels=256))
    assert all(torch.equal((images * 255).round() / 255, images) for images in seen)


def test_bisect_finds_nearly_the_smallest_perturbation():
    x, y = victims(16)
    found = combine.bisect(
        attacks()["pgd"](eps=0.5, steps=20), WhiteBox(cnn()), x, Misclassified(y), ThreatModel("linf"), tolerance=0.002
    )
    nearest = attacks()["fab"](norm="linf", steps=50).run(WhiteBox(cnn()), x, Misclassified(y)).distance
    assert found.success.all()
    assert (found.distance <= nearest * 1.15 + 0.004).all()


def test_eot_attacks_the_mean_over_transformations():
    x, y = victims(32)
    shifted = combine.eot(WhiteBox(cnn()), 3, lambda images, k: images.roll(k - 1, 3))
    result = attacks()["pgd"](eps=0.15, steps=10).run(shifted, x, Misclassified(y))
    mean = torch.stack([cnn()(result.images.roll(k - 1, 3)) for k in range(3)]).mean(0)
    unlike = ~result.initially_wrong
    assert torch.equal(result.success[unlike], (mean.argmax(1) != y)[unlike])
    assert result.success.any()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: attacks()["pgd"](eps=-0.1), "eps"),
        (lambda: attacks()["pgd"](eps="nan"), "eps"),
        (lambda: attacks()["pgd"](eps="8/256"), "eps"),
        (lambda: attacks()["pgd"](norm="l7"), "norm"),
        (lambda: attacks()["pgd"](steps=0), "steps"),
        (lambda: attacks()["pgd"](stepz=3), "stepz"),
        (lambda: ThreatModel("l7"), "norm"),
        (lambda: ThreatModel("linf", 1.5), "eps"),
        (lambda: ThreatModel("l2", float("nan")), "eps"),
        (lambda: ScoreOracle(cnn(), budget=0), "budget"),
    ],
)
def test_invalid_configs_name_the_field(make, field):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.field == field


def test_attack_checks_access_threat_and_images():
    x, y = victims(2)
    pgd = attacks()["pgd"](eps=0.1)
    with pytest.raises(ConfigError, match="gradients"):
        pgd.run(ScoreOracle(cnn()), x, Misclassified(y))
    with pytest.raises(ConfigError, match="norm"):
        attacks()["ddn"]().run(WhiteBox(cnn()), x, Misclassified(y), ThreatModel("linf"))
    with pytest.raises(ConfigError, match="needs eps"):
        pgd.run(WhiteBox(cnn()), x, Misclassified(y), ThreatModel("linf"))
    with pytest.raises(InputError, match="0 to 9"):
        pgd.run(WhiteBox(cnn()), x, Misclassified(y + 10))
    with pytest.raises(InputError, match="0 to 9"):
        pgd.run(WhiteBox(cnn()), x, Targeted(y - 10))
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        pgd.run(WhiteBox(cnn()), x * 255, Misclassified(y))
    with pytest.raises(InputError, match="float32"):
        pgd.run(WhiteBox(cnn()), x.double(), Misclassified(y))
    with pytest.raises(InputError, match="two classes"):
        pgd.run(WhiteBox(Wrapped(cnn(), lambda z: z[:, :1]).eval()), x, Misclassified(y * 0))


def test_margins_are_below_zero_exactly_when_the_image_is_adversarial():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0]])
    assert Misclassified(torch.tensor([0, 0, 0])).margin(logits).tolist() == [1.0, -3.0, 0.0]
    assert Targeted(torch.tensor([0, 0, 2])).margin(logits).tolist() == [-1.0, 3.0, 1.0]
    maps = torch.zeros(1, 2, 2, 2)
    maps[:, 1, 0] = 1  # upper row is class 1, lower row class 0
    labels = torch.tensor([[[1, 1], [1, 255]]])
    half = FractionOfPixels(labels, threshold=0.3)
    assert half.margin(maps) == pytest.approx(2 / 3 - 0.7, abs=1e-5)
    assert half.margin(maps) < 0
    assert FractionOfPixels(labels, threshold=0.5).margin(maps) > 0
    aimed = FractionOfPixels(labels, targets=torch.zeros(1, 2, 2, dtype=torch.int64), threshold=1.0)
    assert aimed.margin(maps) > 0
    assert aimed.margin(maps * 0) < 0


def test_classifier_attacks_work_on_segmenters():
    x, _ = victims(4)
    net = Wrapped(nn.Identity(), lambda images: torch.cat([0.5 - images, images - 0.5], 1)).eval()
    labels = net(x).argmax(1)
    result = attacks()["pgd"](eps=0.6, steps=20).run(WhiteBox(net), x, FractionOfPixels(labels, threshold=0.9))
    wrong = (net(result.images).argmax(1) != labels).flatten(1).float().mean(1)
    assert torch.equal(result.success, wrong >= 0.9)
    assert result.success.all()


def test_row_rng_is_uniform_normal_and_independent_per_row():
    draws = RowRNG(torch.arange(4))
    uniform = draws.uniform((50_000,), "u")
    normal = draws.normal((50_000,), "n")
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert (uniform.mean(1) - 0.5).abs().max() < 0.01
    assert (uniform.var(1) - 1 / 12).abs().max() < 0.002
    assert normal.mean(1).abs().max() < 0.02
    assert (normal.var(1) - 1).abs().max() < 0.03
    assert torch.corrcoef(uniform).fill_diagonal_(0).abs().max() < 0.02
    assert torch.equal(RowRNG(torch.tensor([2])).uniform((50_000,), "u")[0], uniform[2])
    assert not torch.equal(draws.uniform((8,), "u", 1), draws.uniform((8,), "u", 2))
    counts = draws.integers(7, (50_000,), "i").flatten().bincount(minlength=7)
    assert counts.min() > 0.97 * 200_000 / 7


def test_label_oracle_returns_only_labels():
    x, _ = victims(4)
    shown = LabelOracle(lambda images: cnn()(images).argmax(1), classes=10).outputs(x)
    assert torch.equal(shown.sum(1), torch.ones(4))
    assert set(shown.flatten().tolist()) == {0.0, 1.0}
