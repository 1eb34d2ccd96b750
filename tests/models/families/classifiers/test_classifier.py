"""The classifier: what it is worth on real digits, and in the corners where classifiers fail."""

import math

import numpy as np
import pytest
import torch

from models.data import Columns
from models.families.classifiers.classifier import Classifier
from models.training.loop import Training
from models.types import DataError, DataSpec
from tests.models.data import dataset, digits


def blobs(counts: list[int], size: int = 12, seed: int = 0) -> tuple[DataSpec, Columns, Columns]:
    """A class for each place of a bright square on noise, with so many images."""
    draws = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = draws.integers(0, 120, (len(labels), 1, size, size)).astype(np.uint8)
    side = size // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(label * 7, side * side)[1] // side, label * 7 % side
        image[0, row : row + 3, column : column + 3] = 255
    rows = Columns({"images": images, "labels": labels})
    counted = {side: {"images": len(labels), "labels": len(labels)} for side in ("train", "validation")}
    return DataSpec("labelled", size, size, 1, tuple(f"c{index}" for index in range(len(counts))), counted), rows, rows


def train(data, **config) -> tuple[Classifier, dict[str, float], list[float]]:
    spec, rows, validation = data
    torch.manual_seed(0)
    training = Training(Classifier.create(config, spec), rows, validation)
    curve = [float(step.metrics["loss"]) for step in training.run()]
    return training.family, training.finish(), curve


@pytest.mark.parametrize("count", [2, 3, 1000])
def test_the_first_loss_is_the_log_of_the_number_of_classes_whatever_they_are(count):
    data = blobs([1] * count if count > 10 else [20] * count)
    _, found, curve = train(data, images=64, batch_size=32)
    assert curve[0] == pytest.approx(math.log(count), rel=1e-5)
    assert ("accuracy:c0" in found) == (count <= 20)


def test_one_class_or_none_is_refused_with_the_remedy():
    for classes in (None, (), ("only",)):
        with pytest.raises(DataError) as caught:
            Classifier.create({}, DataSpec("labelled", 8, 8, 1, classes, {"train": {"images": 9, "labels": 9}}))
        assert "classes" in caught.value.detail and caught.value.remedy


def test_a_rare_class_is_found_when_classes_weigh_the_same():
    data = blobs([400, 12])
    _, found, _ = train(data, epochs=6, balance="inverse")
    assert found["accuracy_majority"] > 0.95
    assert found["accuracy_balanced"] > 0.95


def test_a_high_learning_rate_does_not_blow_the_first_updates_up():
    _, found, curve = train(blobs([40, 40, 40]), epochs=20, learning_rate=0.03)
    assert max(curve) < 3 * math.log(3) + 1
    assert found["accuracy"] > 0.9


def test_augmentation_and_smoothing_change_training_and_nothing_else():
    spec, rows, validation = dataset("labelled", (3, 16, 16), 48)
    settings = {"flip": True, "shift": 2, "label_smoothing": 0.1, "images": 96, "batch_size": 16}
    training = Training(Classifier.create(settings, spec), rows, validation)
    for _ in training.run():
        pass
    model = training.family.eval()
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(model.logits(images), model.logits(images))


def test_real_digits_are_told_apart_better_than_a_linear_model_does():
    _, found, _ = train(digits(), epochs=4)
    assert found["accuracy"] >= 0.955
    assert found["accuracy"] > found["accuracy_linear"] + 0.04 > found["accuracy_majority"]
    assert found["calibration_error"] < 0.05
