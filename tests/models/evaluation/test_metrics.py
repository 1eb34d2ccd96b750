"""Measures against exact answers."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from models.data import Columns
from models.evaluation import metrics
from tests.models.data import digits


def columns(count: int = 200, shape=(1, 8, 8), seed: int = 0) -> Columns:
    draws = np.random.default_rng(seed)
    plane = draws.normal(size=(6, int(np.prod(shape))))
    rows = 128 + 20 * draws.normal(size=(count, 6)) @ plane + 3 * draws.normal(size=(count, plane.shape[1]))
    return Columns({"images": rows.clip(0, 255).astype(np.uint8).reshape(count, *shape)})


def test_the_pca_baseline_is_that_of_scikit_learn():
    train, validation = columns(), columns(50, seed=1)
    rows, held = ((split.columns["images"].reshape(len(split), -1) / 255) for split in (train, validation))
    pca = PCA(4).fit(rows)
    expected = np.mean((pca.inverse_transform(pca.transform(held)).clip(0, 1) - held) ** 2)
    assert metrics.pca_mse(train, validation, 4) == pytest.approx(expected, rel=1e-4)


def test_the_pca_baseline_of_wide_images_is_as_good_as_exact():
    rows = torch.randn(300, 1200, generator=torch.Generator().manual_seed(0)) * (0.97 ** torch.arange(1200))
    pca = metrics.Pca(rows, 10)
    error = (pca.reconstruct(rows) - rows).square().sum()
    exact = torch.linalg.svdvals(rows - rows.mean(0))[10:].square().sum()
    assert error / exact == pytest.approx(1, abs=1e-4)


def test_constant_images_have_no_error_and_no_axes_to_fail_on():
    flat = Columns({"images": np.full((10, 1, 8, 8), 200, np.uint8)})
    assert metrics.pca_mse(flat, flat, 4) < 1e-12
    assert metrics.mean_image_mse(flat, flat) < 1e-12


def test_more_axes_than_rows_reproduce_the_rows():
    few = columns(3)
    assert metrics.pca_mse(few, few, 32) < 1e-10


def test_the_mean_image_leaves_the_variance():
    data = columns()
    assert metrics.mean_image_mse(data, data) == pytest.approx((data.columns["images"] / 255).var(0).mean(), rel=1e-4)


def test_psnr_of_a_tenth_is_twenty_decibels():
    assert metrics.psnr(0.01) == pytest.approx(20)
    assert metrics.psnr(0) == 100
    assert metrics.row_psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1)).item() == pytest.approx(20)


def test_neighbours_vote_and_the_nearest_breaks_a_tie():
    reference, labels = torch.tensor([[0.0], [1.0], [1.1], [9.0]]), torch.tensor([0, 1, 1, 2])
    queries = torch.tensor([[0.1], [8.0]])
    assert metrics.knn_accuracy(reference, labels, queries, torch.tensor([1, 2]), neighbours=3) == 0.5
    assert metrics.knn_accuracy(reference, labels, queries, torch.tensor([0, 2]), neighbours=2) == 1.0


def test_calibration_error_of_known_confidences():
    logits = torch.tensor([[0.8, 0.2]]).log().repeat(10, 1)
    assert metrics.calibration_error(logits, torch.tensor([0] * 8 + [1] * 2)) == pytest.approx(0, abs=1e-6)
    assert metrics.calibration_error(logits, torch.tensor([0] * 3 + [1] * 7)) == pytest.approx(0.5, abs=1e-6)


def test_units_that_do_not_move_are_not_active():
    means = torch.tensor([[0.0, 5.0, 1.0], [1.0, 5.0, 1.05], [2.0, 5.0, 0.95]])
    assert metrics.active_units(means) == 1


def test_the_linear_baseline_is_about_that_of_scikit_learn():
    _, train, validation = digits()
    sides = [
        (split.columns["images"][:600].reshape(-1, 784) / 255, split.columns["labels"][:600])
        for split in (train, validation)
    ]
    expected = LogisticRegression(max_iter=300).fit(*sides[0]).score(*sides[1])
    some = [Columns({name: column[:600] for name, column in split.columns.items()}) for split in (train, validation)]
    assert metrics.linear_baseline(*some, classes=10) == pytest.approx(expected, abs=0.03)


def test_rows_are_bounded_and_spread_over_the_column():
    found = torch.cat(list(metrics.spaced_rows(Columns({"labels": np.arange(1000)}), "labels", limit=11)))
    assert len(found) == 11 and found[0] == 0 and found[-1] == 999
