"""Distances between sets of images against closed forms, and the instrument on pictures whose order is known."""

import math

import numpy as np
import pytest
import torch

from models.data import Columns
from models.evaluation.feature_network import blurred, feature_net, reoriented
from models.evaluation.fidelity import (
    Fidelity,
    coverage,
    evenly,
    evenness,
    frechet,
    gaussian_images,
    interval,
    kernel_distance,
    kernel_interval,
)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_frechet_distance_of_two_gaussians_is_the_closed_form():
    rows = torch.randn(4000, 3, generator=draws(0), dtype=torch.float64)
    rows = (rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(rows.T.cov(correction=0))).T  # exactly white
    other = rows * torch.tensor([1.0, 2.0, 0.5]) + torch.tensor([3.0, 0.0, 0.0])
    assert frechet(rows, other) == pytest.approx(9 + (1 - 2) ** 2 + (1 - 0.5) ** 2, abs=1e-8)
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-8)


def test_the_kernel_distance_is_unbiased_and_by_hand_on_two_points():
    found, wanted = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [1.0]])
    # k(x, y) = (xy + 1)^3: within found 1, within wanted 27, across 27, 8, 1, 1
    assert kernel_distance(found, wanted) == pytest.approx(1 + 27 - 2 * (27 + 8 + 1 + 1) / 4)
    values = [kernel_distance(*torch.randn(2, 60, 4, generator=draws(seed))) for seed in range(60)]
    assert abs(np.mean(values)) < 2.5 * np.std(values) / math.sqrt(60)


def test_precision_and_recall_tell_a_narrow_sampler_from_a_wide_one():
    real = torch.rand(300, 2, generator=draws(0))
    narrow, wide = real[:150] * 0.5, real * 3
    assert coverage(narrow, real) > 0.95 and coverage(real, narrow) < 0.5
    assert coverage(wide, real) < 0.5 and coverage(real, real) == 1


def test_the_interval_holds_the_estimate_and_narrows_with_more_rows():
    measure = lambda a, b: float((a.mean() - b.mean()).abs())  # noqa: E731
    widths = []
    for count in (50, 5000):
        found, wanted = torch.randn(count, 1, generator=draws(1)) + 2, torch.randn(count, 1, generator=draws(2))
        low, high = interval(measure, found, wanted)
        assert low < measure(found, wanted) < high and low < 2.05 and high > 1.95
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_evenness_is_one_for_all_classes_alike_and_zero_for_one():
    assert evenness(torch.arange(8) % 4, 4) == pytest.approx(1)
    assert evenness(torch.zeros(8, dtype=torch.int64), 4) == pytest.approx(0)


def test_turning_names_what_was_done():
    images = torch.rand(64, 1, 4, 4)
    out, which = reoriented(images, draws(0))
    assert set(which.tolist()) == set(range(8))
    for row, way in enumerate(which.tolist()):
        plain = images[row]
        undone = out[row].mT if way >= 4 else out[row]
        wanted = [plain, plain.flip(2), plain.flip(1), plain.flip(1, 2)][way % 4]
        assert torch.equal(undone, wanted)


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright square in one of four corners, with noise: the corner is the class."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 40, (count, 1, 12, 12), dtype=np.uint8), rng.integers(0, 4, count)
    for image, label in zip(images, labels, strict=True):
        top, left = (6 * (label // 2) + rng.integers(0, 3), 6 * (label % 2) + rng.integers(0, 3))
        image[0, top : top + 4, left : left + 4] = rng.integers(180, 256)
    return images, labels


@pytest.mark.parametrize("classes", [4, None])
def test_the_instrument_orders_real_blurred_and_repeated_images(classes):
    (images, labels), (unseen, truth) = squares(400, 0), squares(100, 1)
    train, validation = Columns({"images": images, "labels": labels}), Columns({"images": unseen, "labels": truth})
    state = torch.random.get_rng_state()
    with torch.no_grad():
        measure = Fidelity(train, validation, torch.device("cpu"), classes)
        report = measure.report(torch.from_numpy(squares(100, 2)[0]) / 255)
    assert torch.equal(state, torch.random.get_rng_state())  # the run that asks is not disturbed
    assert report["fd"] < 0.3 * min(report["fd_blurred"], report["fd_repeated"])
    assert report["kid"] < 0.3 * min(report["kid_blurred"], report["kid_repeated"])
    assert report["fd_low"] < report["fd"] < report["fd_high"]
    assert report["precision"] > 0.6 and report["recall"] > 0.6 and report["copied"] < 0.2
    assert measure.report(measure.train_images)["copied"] == 1
    if classes:
        assert report["fd"] < 0.3 * report["fd_gaussian"]
        assert report["class_fd"] < 0.3 * min(report["class_fd_gaussian"], report["class_fd_halves"])
        assert report["confident"] > 0.8 > report["confident_gaussian"] and report["class_entropy"] > 0.95
        assert (
            measure.class_logits(measure.validation_images).argmax(1) == torch.from_numpy(truth)
        ).double().mean() > 0.9


def test_class_features_weigh_a_lost_class_more_than_blur():
    (images, labels), (unseen, truth) = squares(400, 0), squares(100, 1)
    train, validation = Columns({"images": images, "labels": labels}), Columns({"images": unseen, "labels": truth})
    samples, kinds = (torch.from_numpy(array) for array in squares(200, 2))
    samples = samples / 255
    with torch.no_grad():
        measure = Fidelity(train, validation, torch.device("cpu"), 4)
        blur, lost = (measure.report(images) for images in (blurred(samples), samples[kinds != 0]))
    assert lost["class_fd"] / blur["class_fd"] > 2 * lost["fd"] / blur["fd"]
    assert lost["class_entropy"] < 0.85 < blur["class_entropy"]


def test_gaussian_images_have_the_mean_and_covariance_of_the_pixels():
    images = 0.5 + 0.05 * torch.randn(600, 1, 2, 2, generator=draws(0)).cumsum(3)
    found, wanted = (rows.flatten(1) for rows in (gaussian_images(images), images))
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(found.T.cov(), wanted.T.cov(), atol=0.001, rtol=0)


def test_a_few_images_of_a_sorted_dataset_have_the_floor_of_all_its_classes():
    (images, labels), (unseen, _) = squares(400, 0), squares(40, 1)
    order = np.argsort(labels, kind="stable")
    with torch.no_grad():
        measure = Fidelity(Columns({"images": images[order]}), Columns({"images": unseen}), torch.device("cpu"))
        assert {int(label) for label in labels[order][::4][evenly(100, 40)]} == {0, 1, 2, 3}
        quick = measure.distances(measure.train_images[:16])
    assert quick["kid_floor"] < 0.2 * quick["kid"], "16 images of one corner are far, 16 of all corners are near"


def test_the_network_is_a_function_of_the_dataset():
    images, labels = squares(40, 0)
    columns = Columns({"images": images, "labels": labels})
    nets = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        nets.append(feature_net(columns, torch.arange(40), torch.device("cpu"), 4))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_blurring_keeps_flat_images():
    assert torch.equal(blurred(torch.full((1, 1, 5, 5), 0.5)), torch.full((1, 1, 5, 5), 0.5))


def test_the_quick_interval_of_the_kernel_distance_is_the_plain_one():
    found, wanted = torch.randn(30, 5, generator=draws(1)) + 0.3, torch.randn(40, 5, generator=draws(2))
    assert kernel_interval(found, wanted) == pytest.approx(interval(kernel_distance, found, wanted), abs=1e-9)
