"""Adversarial training: every method resumes exactly, stays in its ball, guards itself, and says what it is worth."""

import pytest
import torch
import torch.nn.functional as F

from models.attacks.core.threat import ThreatModel
from models.data import Columns
from models.families.classifiers import robustness
from models.families.classifiers.adversarial_config import InnerAttack, default_eps
from models.families.classifiers.adversarial_training import OverfittingGuard
from models.families.classifiers.classifier import Classifier
from models.training.loop import Training
from models.types import ConfigError, DataSpec
from tests.models.data import dataset, digits

METHODS = ("goodfellow", "fgsm_rs", "pgd", "trades", "free")
SHORT = {"images": 24, "batch_size": 4, "width": 4}


def training(shape=(1, 8, 8), seed: int = 0, **config) -> Training:
    spec, rows, validation = dataset("labelled", shape)
    torch.manual_seed(seed)
    return Training(Classifier.create(SHORT | config, spec), rows, validation, seed)


def small_digits(count: int) -> tuple[DataSpec, Columns, Columns]:
    """Real digits at 14x14."""
    spec, train, validation = digits()
    halves = [
        Columns({"images": side.columns["images"][:rows, :, ::2, ::2], "labels": side.columns["labels"][:rows]})
        for side, rows in ((train, count), (validation, 200))
    ]
    counts = {"train": {"images": count, "labels": count}, "validation": {"images": 200, "labels": 200}}
    return DataSpec("labelled", 14, 14, 1, spec.classes, counts), *halves


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 33)], ids=["grey", "colour"])
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_undisturbed_run_bit_for_bit(method, shape):
    whole = training(shape, adversarial=method)
    states, curve = [whole.state()], []
    for step in whole.run():
        states.append(whole.state())
        curve.append({name: float(value) for name, value in step.metrics.items()})
    measured = whole.finish()
    assert {"accuracy_fgsm", "accuracy_pgd", "accuracy_random_signs", "accuracy_before_attack"} <= measured.keys()
    for done in (4, 1):
        resumed = training(shape, adversarial=method)
        resumed.restore(states[done])
        assert [{n: float(v) for n, v in step.metrics.items()} for step in resumed.run()] == curve[done:]
        for name, tensor in resumed.state().tensors.items():
            assert torch.equal(tensor, states[-1].tensors[name]), name
        assert done == 1 or resumed.finish() == measured
    served = whole.family.serving_state()
    again = Classifier.create(whole.family.config.model_dump(), whole.family.data).load_for_serving(served)
    assert not [name for name in served if "guard" in name] and again.config.adversarial_eps > 0


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_attacked_images_stay_in_the_ball_and_raise_the_loss(norm, eps):
    model = training(adversarial="pgd").family.eval()
    torch.nn.init.normal_(model.head.weight)
    x, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3

    def error(images):
        return F.cross_entropy(model.logits(images), labels, reduction="none")

    draws = torch.Generator().manual_seed(0)
    hard = InnerAttack(ThreatModel(norm, eps), 7, 2.5 * eps / 7, "random")(x, error, draws)
    assert (ThreatModel(norm, eps).distance(x, hard) <= eps + 1e-6).all()
    assert hard.min() >= 0 and hard.max() <= 1 and not hard.requires_grad
    assert (error(hard) > error(x)).all()


def test_one_step_from_the_image_is_fgsm():
    x, slope = torch.tensor([[[[0.5, 0.02]]]]), torch.tensor([[[[2.0, -0.5]]]])
    ascent = InnerAttack(ThreatModel("linf", 0.1), 1, 0.1, "image")
    assert torch.allclose(ascent(x, lambda at: (at * slope).flatten(1).sum(1), None), torch.tensor([[[[0.6, 0.0]]]]))


def test_eps_follows_the_images_unless_it_is_given():
    _, drawn, _ = digits()
    _, photos, _ = dataset("labelled", (3, 16, 16))
    assert default_eps(drawn, "linf") == 0.3 and default_eps(photos, "linf") == 8 / 255
    assert training(adversarial="pgd").family.config.adversarial_eps == 8 / 255
    assert training(adversarial="pgd", adversarial_eps="16/255").family.config.adversarial_eps == 16 / 255
    assert training().family.config.adversarial_eps is None


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"adversarial_eps": 0.1}, "adversarial_eps"),
        ({"adversarial": "fgsm_rs", "adversarial_steps": 3}, "adversarial_steps"),
        ({"adversarial": "pgd", "adversarial_eps": 0}, "adversarial_eps"),
        ({"adversarial": "pgd", "adversarial_eps": "300/255"}, "adversarial_eps"),
        ({"adversarial": "goodfellow", "adversarial_weight": 2}, "adversarial_weight"),
        ({"adversarial": "madry"}, "adversarial"),
    ],
)
def test_settings_that_cannot_work_are_named(config, field):
    with pytest.raises(ConfigError) as caught:
        training(**config)
    assert caught.value.field == f"config/{field}"


def test_the_guard_takes_back_the_last_weights_that_withstood():
    network = torch.nn.Linear(2, 2)
    guard = OverfittingGuard(network, updates=400)
    assert guard.every == 10 and guard.due(9) and not guard.due(10)
    healthy = network.weight.detach().clone()
    assert not guard.overfitted(network, 0.8, 0.9) and not guard.overfitted(network, 0.8, 0.9)
    torch.nn.init.zeros_(network.weight)
    assert not guard.overfitted(network, 0.5, 0.9)  # bad luck with a batch is no alarm
    assert not guard.overfitted(network, 0.3, 0.4)  # neither is a batch that is hard for both
    assert guard.overfitted(network, 0.1, 0.9) and torch.equal(network.weight, healthy)
    assert bool(guard.switched) and not guard.due(19)


@pytest.mark.parametrize("method", ["fgsm_rs", "free"])
def test_an_update_without_a_check_reads_no_value_from_the_device(method, monkeypatch):
    guarded = training(adversarial=method, images=400)
    guarded.family.train()
    guarded.family.guard.every = 3
    guarded.monitor.steps = set()

    def read(*args):
        raise AssertionError("a value was read")

    for how in ("item", "__bool__", "__float__", "__int__", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, how, read)
    guarded.advance()
    guarded.advance()
    with pytest.raises(AssertionError, match="a value was read"):
        guarded.advance()


@pytest.mark.parametrize("method", ["fgsm_rs", "free"])
def test_after_an_alarm_training_goes_on_with_several_steps_also_when_resumed(method, monkeypatch):
    def alarm(guard, network, withstands, own):
        guard.switch()
        return True

    monkeypatch.setattr(OverfittingGuard, "overfitted", alarm)
    whole = training(adversarial=method)
    states = [whole.state() for _ in whole.run()]
    measured = whole.finish()
    assert measured["guard_switched"] == 1
    assert any("catastrophic" in remark for remark in whole.family.warnings(measured))
    resumed = training(adversarial=method)
    resumed.restore(states[2])
    for _ in resumed.run():
        pass
    for name, tensor in resumed.state().tensors.items():
        assert torch.equal(tensor, states[-1].tensors[name]), name


def test_free_training_shows_fewer_images_because_it_shows_each_several_times():
    spec, _, _ = dataset("labelled", (1, 8, 8), count=400)
    lengths = {method: Classifier.create({"adversarial": method}, spec).config.images for method in ("pgd", "free")}
    assert lengths["free"] * 4 == pytest.approx(lengths["pgd"], rel=0.05)


def test_leaking_labels_are_remarked_on():
    leaking = {"accuracy_fgsm": 0.93, "accuracy_pgd": 0.0}
    assert "PGD" in robustness.warnings(leaking)[0]
    assert not robustness.warnings({"accuracy_fgsm": 0.8, "accuracy_pgd": 0.75})
    assert not robustness.warnings({"accuracy": 0.9})


def test_a_hardened_model_withstands_what_a_plain_one_does_not():
    spec, train, validation = small_digits(1000)
    found = {}
    for method in ("none", "pgd"):
        torch.manual_seed(0)
        extra = {} if method == "none" else {"adversarial_eps": 0.15, "adversarial_steps": 3}
        run = Training(
            Classifier.create({"adversarial": method, "epochs": 6, "width": 8} | extra, spec), train, validation
        )
        for _ in run.run():
            pass
        run.family.eval()
        found[method] = robustness.robust_accuracies(run.family, validation, 0.15, "linf")
    plain, hard = found["none"], found["pgd"]
    assert plain["accuracy_random_signs"] > plain["accuracy_fgsm"] + 0.2
    assert hard["accuracy_pgd"] > plain["accuracy_pgd"] + 0.2
    assert hard["accuracy_pgd"] <= hard["accuracy_fgsm"] <= hard["accuracy_random_signs"]
