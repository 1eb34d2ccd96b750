"""Calibration of D's logits, and the operation score."""

import pytest
import torch

from models.families.gans.evaluation import balanced_accuracy, platt_scaling
from models.families.gans.gan import GAN
from models.operations.score import Score
from models.registry import fitting
from tests.models.families.gans.tiny import build


def test_platt_scaling_of_gaussians_equals_their_likelihood_ratio():
    draws = torch.Generator().manual_seed(0)
    real, fake = torch.randn(20_000, generator=draws) + 1, torch.randn(20_000, generator=draws) - 1
    scale, shift = platt_scaling(real, fake).tolist()
    assert scale == pytest.approx(2, abs=0.06) and shift == pytest.approx(0, abs=0.04)  # log N(x; 1) / N(x; -1) = 2x


def test_a_blind_discriminator_answers_even_odds():
    same = torch.randn(500, generator=torch.Generator().manual_seed(0))
    scale, shift = platt_scaling(same, same).tolist()
    assert abs(scale) < 1e-6 and abs(shift) < 1e-6
    assert platt_scaling(same - 3, same)[0] == 0  # never negative
    assert balanced_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 3.0])) == 0.75


def test_separable_logits_stay_finite():
    scale, shift = platt_scaling(torch.tensor([5.0, 6.0]), torch.tensor([-5.0, -6.0]))
    assert torch.isfinite(scale) and torch.isfinite(shift) and scale > 0


def test_score_is_the_calibrated_probability():
    model, operation = build(GAN).eval(), Score()
    with torch.no_grad():
        model.calibration.copy_(torch.tensor([2.0, -0.5]))
        images = torch.rand(3, 1, 8, 8)
        wanted = (2 * model.discriminator(images * 2 - 1) - 0.5).sigmoid()
        rows = operation.rows(model, images, operation.Params())
        result = operation.result(model, rows, operation.compute(model, rows, operation.Params()), operation.Params())
    found = [item["score"] for item in result.facts["items"]]
    assert found == pytest.approx(wanted.tolist(), abs=1e-6)
    assert [item["real"] for item in result.facts["items"]] == [p >= 0.5 for p in found]
    assert {"samples", "interpolate", "decode", "score"} <= set(fitting(GAN))
