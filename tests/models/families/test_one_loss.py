"""Families with one loss: averaged weights, the best weights, augmentation of images with what belongs to them."""

import numpy as np
import pytest
import torch

from models.data import Columns
from models.families.classifiers.classifier import Classifier
from models.families.classifiers.regressor import Regressor
from models.families.dense.detector import Detector
from models.families.dense.segmenter import Segmenter
from models.nn.augment import colour_jitter, constant_borders, flip_pair, shift_pair
from models.nn.ema import WeightAverage
from models.training.loop import Training
from models.types import DataSpec
from tests.models.data import dataset

LAYOUTS = {Classifier: "labelled", Regressor: "attributes", Segmenter: "segmentation", Detector: "detection"}
SHORT = {"images": 64, "batch_size": 8, "width": 4}


def training(family, **config) -> Training:
    spec, *sides = dataset(LAYOUTS[family], (1, 16, 16), 32)
    torch.manual_seed(0)
    return Training(family.create(SHORT | config, spec), *sides, seed=3)


def finished(run: Training) -> dict[str, torch.Tensor]:
    """The weights that are published."""
    for _ in run.run():
        pass
    run.finish()
    return run.family.serving_state()


@pytest.mark.parametrize("family", LAYOUTS)
def test_published_weights_are_averages_which_resume_exactly(family):
    run, averages = training(family, keep="last"), None
    for step in run.run():
        now = [parameter.detach().clone() for parameter in run.family.parameters()]
        beta = 0.5 ** (8 / min(0.02 * 64, 0.05 * step.images))
        averages = now if averages is None else [a * beta + b * (1 - beta) for a, b in zip(averages, now, strict=True)]
        if step.images == 32:
            state = run.state()
    run.finish()
    published = run.family.serving_state()
    assert not any(name.startswith("average") for name in published)
    again = training(family, keep="last")
    again.restore(state)
    assert all(torch.equal(tensor, published[name]) for name, tensor in finished(again).items())
    plain = finished(training(family, keep="last", ema=False))
    assert any(not torch.equal(tensor, published[name]) for name, tensor in plain.items())


def test_averages_take_the_place_of_parameters_in_eval_mode_only():
    run = training(Classifier, ema=True)
    for _ in range(3):
        run.advance()
    family, images = run.family, torch.rand(2, 1, 16, 16)
    raw = [parameter.detach().clone() for parameter in family.parameters()]
    averages = [buffer.clone() for buffer in family.average.buffers()]
    family.eval()
    assert all(map(torch.equal, family.parameters(), averages)) and not family.eval().training
    run.snapshot()
    family.train()
    assert all(map(torch.equal, family.parameters(), raw)) and family.logits(images).isfinite().all()


def test_average_is_a_running_mean_with_a_half_life_in_images():
    layer = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(layer.weight)
    average = WeightAverage(layer, half_life=100)
    torch.nn.init.ones_(layer.weight)
    average.update(layer, batch=100, images=10_000)
    assert torch.allclose(next(average.buffers()), torch.tensor(0.5))


@pytest.mark.parametrize("family", LAYOUTS)
def test_best_weights_are_published_by_default_and_the_settings_of_earlier_models_stay(family):
    spec = dataset(LAYOUTS[family], (1, 16, 16), 32)[0]
    assert family.complete_config({}, spec).keep == "best" and family.complete_config({}, spec).ema
    earlier = family.from_stored(SHORT | {"keep": None}, spec, 1).config
    assert (earlier.keep, earlier.ema) == ("last", False) and getattr(earlier, "shift", 0) == 0
    if family is Segmenter:
        assert (earlier.mirror, earlier.jitter) == (False, 0)


@pytest.mark.parametrize(("last", "images"), [(0.55, 64), (0.8, 32)])
def test_earlier_weights_are_published_only_where_the_loss_has_clearly_risen(last, images, monkeypatch):
    """The validation loss of a few rows varies: a classifier that is still learning is not sent back for it."""
    losses = {8: 2.0, 32: 0.5, 64: last}
    loss = lambda family, probe, context: torch.tensor(losses.get(context.images, 0.9))  # noqa: E731
    monkeypatch.setattr(Classifier, "validation_loss", loss)
    run = training(Classifier)
    weights = {step.images: {k: v.clone() for k, v in run.state().tensors.items()} for step in run.run()}
    assert run.finish()["best_images"] == images
    published = run.family.serving_state()
    averages = [value for name, value in weights[images].items() if name.startswith("network/average")]
    assert all(map(torch.equal, (published[name] for name, _ in run.family.named_parameters()), averages))


def test_adversarial_training_keeps_its_settings():
    config = training(Classifier, adversarial="pgd").family.config
    assert (config.keep, config.ema, config.shift) == ("last", False, 0)


def framed(width: int, shape=(1, 28, 28), count: int = 40) -> Columns:
    """Noise inside a black frame."""
    images = np.zeros((count, *shape), np.uint8)
    inner = images[:, :, width : shape[1] - width, width : shape[2] - width]
    inner[:] = np.random.default_rng(0).integers(0, 256, inner.shape)
    return Columns({"images": images, "labels": np.arange(count) % 2})


@pytest.mark.parametrize(("frame", "shift"), [(4, 2), (1, 2), (0, 0)])
def test_only_images_with_a_frame_are_shifted_by_default(frame, shift):
    rows = framed(frame)
    spec = DataSpec("labelled", 28, 28, 1, ("a", "b"), {"train": {"images": 40, "labels": 40}})
    assert Training(Classifier.create(SHORT, spec), rows, rows).family.config.shift == shift
    assert Training(Classifier.create(SHORT | {"shift": 1}, spec), rows, rows).family.config.shift == 1


def test_regressors_are_not_shifted_because_the_place_may_be_the_target():
    assert training(Regressor).family.config.shift == 0


def test_frames_of_one_colour_are_found():
    images = torch.full((2, 3, 9, 9), 0.7)
    images[0, :, 3:6, 3:6] = torch.rand(3, 3, 3)
    images[1, 1, 0, 4] = 0.1
    assert constant_borders(images, 2).tolist() == [True, False]


def test_masks_move_with_their_images():
    images = torch.rand(64, 3, 12, 10, generator=torch.Generator().manual_seed(0))
    masks = (images[:, 0] * 7).long()
    for change in (flip_pair, lambda *rest: shift_pair(*rest[:2], 3, rest[2])):
        moved, moved_masks = change(images, masks, torch.Generator().manual_seed(1))
        assert torch.equal((moved[:, 0] * 7).long(), moved_masks) and moved_masks.dtype == masks.dtype
        assert not torch.equal(moved, images) and moved.shape == images.shape


def test_colours_vary_within_bounds_and_by_image():
    images = torch.full((200, 3, 4, 4), 0.5)
    changed = colour_jitter(images, 0.1, torch.Generator().manual_seed(0))
    assert float((changed - images).abs().max()) <= 0.5 * 0.1 + 0.05 + 1e-6
    assert changed[:, :, 0, 0].std(0).min() > 0.02 and changed.std((2, 3)).max() < 1e-6
