"""Alarms and remedies of GAN trainings: each alarm is provoked; a healthy training raises none."""

import math

import pytest
import torch
from torch.nn import functional as F

from models.context import StepContext
from models.data import Columns
from models.diagnosis import Alarm, Inspection, Reading
from models.families.gans import diagnostics as alarms
from models.families.gans.gan import GAN
from models.families.gans.progressive_gan import ProgressiveGAN
from models.training.loop import Training
from models.types import DataSpec
from tests.models.data import digits
from tests.models.families.gans.tiny import build, columns, spec


@pytest.fixture(scope="module")
def small_digits():
    """Digits of 10x10 pixels: (spec, train, validation)."""
    found = []
    for side in digits()[1:]:
        images = torch.from_numpy(side.columns["images"][:1000].copy()).float()
        found.append(Columns({"images": F.adaptive_avg_pool2d(images, 10).round().to(torch.uint8).numpy()}))
    rows = {name: {"images": len(side)} for name, side in zip(("train", "validation"), found, strict=True)}
    return DataSpec("plain", 10, 10, 1, None, rows), *found


def run(small_digits, count: int | None = None, change=None, **config) -> Training:
    """A training of a small GAN on some of the digits, to its end."""
    data, train, validation = small_digits
    train = Columns({"images": train.columns["images"][:count]})
    data = DataSpec("plain", 10, 10, 1, None, {"train": {"images": len(train)}})
    torch.manual_seed(0)
    model = GAN.create({"width": 8, "batch_size": 32, "images": 6400, "measure_every": 0, **config}, data)
    if change:
        change(model)
    training = Training(model, train, validation, seed=0)
    for _ in training.run():
        pass
    return training


def names(training: Training) -> set[str]:
    return {alarm.name for alarm in training.monitor.alarms}


def test_a_healthy_training_raises_no_alarm(small_digits):
    training = run(small_digits, augment="none", images=3840)
    assert names(training) == set()
    assert training.monitor.readings[-1].metrics["gradient_nonfinite"] == 0


def silent(model: GAN) -> None:
    model.noise = lambda count, draws: torch.zeros(count, model.config.latent_dim)


def test_a_generator_of_one_image_raises_mode_collapse(small_digits):
    training = run(small_digits, augment="none", images=1280, change=silent)
    (alarm,) = [alarm for alarm in training.monitor.alarms if alarm.name == "mode-collapse"]
    assert alarm.evidence["distance"] < 0.1 * alarm.evidence["real_distance"] and "few different" in alarm.cause


def test_repetitions_of_a_few_images_raise_mode_collapse():
    reals = torch.rand(64, 1, 8, 8)
    assert not list(alarms.collapsed(torch.rand(64, 1, 8, 8), reals))
    groups = torch.rand(8, 1, 8, 8).repeat(8, 1, 1, 1) + 0.01 * torch.rand(64, 1, 8, 8)
    (alarm,) = alarms.collapsed(groups, reals)
    assert alarm.evidence["distance"] > 0.8 * alarm.evidence["real_distance"]
    assert not list(alarms.collapsed(groups, reals[:1].repeat(64, 1, 1, 1))), "the data are no different"


FEW = {"count": 16, "augment": "none", "r1": 0.0, "minibatch_stddev": False, "batch_size": 16, "images": 3200}


def test_an_overfitted_discriminator_gets_more_augmentation(small_digits):
    training = run(small_digits, auto_remedy=True, **FEW)
    alarm = next(alarm for alarm in training.monitor.alarms if alarm.name == "discriminator-overfits")
    assert alarm.evidence["unseen"] < alarm.evidence["trained"] and "augmented" in alarm.treated
    assert training.family.remedies.value("augment") > 0
    assert float(training.family.adaptive.p) == pytest.approx(training.family.remedies.value("augment"))


WON = {
    "count": 200,
    "augment": "none",
    "r1": 0.0,
    "learning_rate": 1e-6,
    "discriminator_learning_rate": 2e-3,
    "images": 3840,
}


def test_a_too_strong_discriminator_gets_a_lower_learning_rate(small_digits):
    training = run(small_digits, auto_remedy=True, **WON)
    pace = training.family.remedies.value("pace")
    assert "discriminator-too-strong" in names(training) and pace < 1
    training.advance()
    rates = {name: optimiser.param_groups[0]["lr"] for name, optimiser in training.optimisers.items()}
    assert rates["discriminator"] == pytest.approx(2000 * pace * rates["generator"])


def test_copies_of_training_images_differ_from_similar_images(small_digits):
    _, train, validation = small_digits
    known = alarms.training_rows(train, torch.device("cpu"))
    reals = validation.spaced(64)["images"]
    copied = (train.spaced(64)["images"] + 0.02 * torch.randn(64, 1, 10, 10)).clamp(0, 1)
    (alarm,) = alarms.memorised(copied, reals, known)
    assert alarm.evidence["copies"] > 0.7 and alarm.evidence["copies_unseen"] < 0.1
    assert not list(alarms.memorised(validation.spaced(128)["images"][1::2], reals, known))


def test_a_generator_of_training_images_raises_memorising(small_digits):
    def parrot(model: GAN) -> None:
        model.sample = lambda generator, count, context: model._train_images[:count]
        model._train_images = small_digits[1].spaced(128)["images"]

    assert "memorising" in names(run(small_digits, augment="none", images=640, change=parrot))


def test_updates_with_non_finite_gradients_are_skipped_and_reported(small_digits):
    def spoil(model: GAN) -> None:
        turns = iter(range(10**6))
        weight = model.discriminator.convs[0].conv.weight
        weight.register_hook(lambda gradient: gradient * (math.inf if next(turns) % 7 == 3 else 1.0))

    training = run(small_digits, augment="none", images=1280, change=spoil)
    alarm = next(alarm for alarm in training.monitor.alarms if alarm.name == "non-finite-gradients")
    assert 0 < alarm.evidence["share"] < 0.5 and "learning_rate" in alarm.remedy
    training.state()  # raises when a weight is not finite


def reading(images: int, **metrics: float) -> Reading:
    return Reading(images, metrics)


def test_a_gradient_a_hundred_times_larger_raises_exploding():
    before = [reading(step, gradient_generator=1.0, gradient_discriminator=2.0) for step in range(3)]
    (alarm,) = alarms.exploding(reading(4, gradient_generator=150.0, gradient_discriminator=100.0), before)
    assert alarm.name == "exploding-generator"
    assert not list(alarms.exploding(reading(4, gradient_generator=150.0), before[:2]))


def test_fd_half_again_above_its_best_raises_getting_worse():
    before = [reading(100, fd=30.0, fd_floor=1.0), reading(200, fd=10.0, fd_floor=1.0)]
    (alarm,) = alarms.worsening(reading(300, fd=17.0, fd_floor=1.0), before)
    assert (alarm.name, alarm.evidence["best_images"]) == ("getting-worse", 200)
    assert not list(alarms.worsening(reading(300, fd=15.0, fd_floor=1.0), before))


@pytest.mark.parametrize(("loss", "won"), [("hinge", 0.05), ("least_squares", 0.01), ("wasserstein", -50.0)])
def test_too_strong_compares_with_the_loss_of_a_blind_discriminator(loss, won):
    before = [reading(1, loss_discriminator=won)]
    assert bool(list(alarms.too_strong(loss, before[0], before))) == (loss != "wasserstein")
    assert not list(alarms.too_strong(loss, reading(2, loss_discriminator=0.3), before))


def test_the_best_generator_is_restored_at_most_three_times():
    model = build(GAN, auto_remedy=True)
    best = {name: tensor.clone() for name, tensor in model.ema.module.state_dict().items()}
    model.remedies.remember(model.ema.module, 5.0)
    for weight in (*model.generator.parameters(), *model.ema.module.parameters()):
        weight.data.add_(1.0)
    model.remedies.remember(model.ema.module, 6.0)
    collapse = Alarm("mode-collapse", "", "")
    assert [bool(model.auto_remedy(collapse, None)) for _ in range(4)] == [True, True, True, False]
    for player in (model.generator, model.ema.module):
        assert all(torch.equal(tensor, best[name]) for name, tensor in player.state_dict().items())
    assert not any(name.startswith("remedies") for name in model.serving_state())
    assert build(ProgressiveGAN, latent_dim=8, widest=8, auto_remedy=True).auto_remedy(collapse, None) is None


TREATED = {"auto_remedy": True, "measure_every": 16, "images": 64, "augment": "diff", "r1": 0.0}


@pytest.mark.parametrize("steps", [5, 11])
def test_a_training_with_measures_and_remedies_resumes_bit_for_bit(steps, monkeypatch):
    monkeypatch.setattr(alarms, "OVERFIT", -9.0)
    monkeypatch.setattr(alarms, "DEVIATIONS", -9.0)  # everything is an alarm
    monkeypatch.setattr(alarms, "WON", 99.0)

    def training(seed: int) -> Training:
        model = build(GAN, spec(), seed, **TREATED)
        return Training(model.train(), columns(model.data), columns(model.data, 1), seed=3)

    def finished(training: Training):
        told = [dict(step.measured) for step in training.run()]
        return training.state(), [facts for facts in told if facts]

    whole, measured = finished(training(0))
    part = training(0)
    for _ in range(steps):
        part.advance()
    resumed = training(9)
    resumed.restore(part.state())
    state, rest = finished(resumed)
    assert len(measured) == 4 and rest == measured[-len(rest) :]
    assert {"fd", "fd_floor", "kid", "precision", "recall_floor"} <= measured[0].keys()
    assert float(whole.tensors["network/remedies.pace"]) < 1 < 1 + float(whole.tensors["network/remedies.augment"])
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in whole.tensors.items())
    assert state.facts == whole.facts


@pytest.mark.parametrize(
    ("config", "points"),
    [((512, None), 0), ((16_000, None), 8), ((16_000, 0), 0), ((16_000, 4000), 4), ((16_000, 1), 64)],
)
def test_midway_measurements_are_bounded_by_the_training_length(config, points):
    model = build(GAN, images=config[0], measure_every=config[1])
    found = list(model.midway_points())
    assert len(found) == points and all(0 < images <= model.total for images in found)


HEALTHY = {"fd": 2.0, "fd_gaussian": 30.0, "confident": 0.7, "confident_floor": 0.95, "class_entropy": 0.97}
HEALTHY |= {"class_entropy_floor": 0.99, "class_fd": 0.3, "class_fd_gaussian": 3.4}


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("unrecognisable", {"confident": 0.2, "class_fd": 3.0}),
        ("classes-missing", {"class_entropy": 0.69}),
        ("worse-than-gaussian", {"fd": 31.0}),
    ],
)
def test_measures_that_trivial_samples_have_are_alarmed_in_the_last_quarter_and_warned_of(name, measured):
    unsure = HEALTHY | {"confident": 0.1}
    unclear = HEALTHY | {"confident": 0.0, "confident_floor": 0.13, "class_fd": 3.0}
    assert not [alarm for quiet in (HEALTHY, unsure, unclear, {}) for alarm in alarms.from_measures(quiet)]
    (alarm,) = alarms.from_measures(HEALTHY | measured)
    assert alarm.name == name and alarm.evidence
    model = build(GAN, images=64).eval()
    assert model.warnings(HEALTHY | measured) == [alarm.sentence] and model.warnings(HEALTHY) == []
    found = []
    for images in (16, 48):
        seen, context = columns(spec()), StepContext(images, 64, 5, 0, torch.Generator().manual_seed(0))
        before = [Reading(8, {})]
        looked = Inspection(Reading(images, HEALTHY | measured), before, seen.head(8), context, seen, seen)
        with torch.no_grad():
            found.append(name in {alarm.name for alarm in model.diagnose(looked)})
    assert found == [False, True]
