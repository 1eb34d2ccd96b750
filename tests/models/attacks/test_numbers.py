"""Attacks on a linear regressor with known nearest adversarial images; success is checked on the returned images."""

import pytest
import torch
from torch import Tensor, nn

from models.capabilities import Regresses
from models.family import Family
from models.operations.attack import AttackOperation, AttackParams
from models.operations.core.victims import victim_of
from models.operations.core.victims.regression import RegressionVictim
from models.registry import attacks
from models.types import ConfigError, DataSpec, InputError

OPERATION = AttackOperation()


class Meter(Regresses, Family):
    """100 + 10 times a weighted sum of the pixels; the targets have a standard deviation of 2."""

    name = "meter"
    deviation = torch.tensor(2.0)

    def __init__(self):
        super().__init__(None, DataSpec("plain", 8, 8, 1))
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64) / 8)

    def estimate(self, images: Tensor) -> Tensor:
        return 100 + 10 * images.flatten(1) @ self.weight

    def optimisers(self):
        raise NotImplementedError

    def step(self, batch, optimisers, context):
        raise NotImplementedError


MODEL = Meter().eval().requires_grad_(False)
IMAGES = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 100 + 78).round() / 255


def attacked(**params) -> tuple[Tensor, list[dict]]:
    params = AttackParams(**params)
    rows = OPERATION.rows(MODEL, IMAGES, params)
    result = OPERATION.result(MODEL, rows, OPERATION.compute(MODEL, rows, params), params)
    return MODEL.estimate(result.images) - MODEL.estimate(IMAGES), result.facts["items"]


@pytest.mark.parametrize(("goal", "sign"), [("up", 1), ("down", -1), ("away", 1)])
@pytest.mark.parametrize("method", ["fgsm", "pgd", "square"])
def test_estimate_moves_up_down_or_either_way(goal, sign, method):
    change, items = attacked(method=method, goal=goal, eps="8/255", seed=1)
    most = 10 * float(MODEL.weight.abs().sum()) * 8 / 255
    for moved, item in zip(change.tolist(), items, strict=True):
        gained = abs(moved) if goal == "away" else moved * sign
        assert item["success"] and gained >= item["adversarial"]["wanted"] - 1e-4
        assert item["adversarial"]["change"] == pytest.approx(moved, abs=1e-3) and item["adversarial"]["wanted"] == 1.0
        assert gained <= most + 1e-3 and item["linf_255"] <= 8
    if method == "fgsm":  # the exact optimum of a linear model
        assert change.tolist() == pytest.approx([sign * most] * 3, rel=1e-3)


def test_minimal_change_larger_than_eps_fails():
    most = 10 * float(MODEL.weight.abs().sum()) * 2 / 255
    for reach, wins in ((most / 2 * 0.95, True), (most / 2 * 1.05, False)):
        _, items = attacked(method="pgd", goal="up", eps="2/255", reach=reach)
        assert [item["success"] for item in items] == [wins] * 3


def test_target_value_is_reached_within_tolerance():
    wanted = float(MODEL.estimate(IMAGES)[0]) - 1.5
    _, items = attacked(method="pgd", target=f"{wanted}", eps="8/255")
    assert items[0]["success"] and abs(items[0]["adversarial"]["value"] - wanted) <= 0.2 + 1e-4
    far = attacked(method="pgd", target=1000, eps="8/255")[1]
    assert not any(item["success"] for item in far)


def test_random_control_does_less_than_the_attack():
    item = attacked(method="fgsm", eps="8/255", control=True, goal="up")[1][0]
    assert abs(item["control"]["change"]) < 0.5 * item["adversarial"]["change"]


@pytest.mark.parametrize(
    ("given", "field"),
    [({"label": 1}, "label"), ({"target": "seven"}, "target"), ({"target": "nan"}, "target"),
     ({"target": 3, "goal": "up"}, "goal"), ({"goal": "vanish"}, "goal"), ({"threshold": 0.5}, "threshold")],
)  # fmt: skip
def test_foreign_settings_are_refused_by_name(given, field):
    with pytest.raises((ConfigError, InputError)) as caught:
        attacked(method="fgsm", **given)
    assert caught.value.field == field


def test_nearest_image_that_shifts_the_estimate_equals_the_formula():
    assert isinstance(victim_of(MODEL), RegressionVictim)
    _, items = attacked(method="deepfool", goal="up")
    wanted = 1.0 / float(10 * MODEL.weight.norm())  # |delta| of a linear model
    assert all(item["success"] and item["norms"]["l2"] < 1.3 * wanted for item in items)


def test_attacks_that_compare_classes_refuse_regressors():
    ranking = next(name for name, kind in attacks().items() if kind.needs_class_scores)
    with pytest.raises(ConfigError, match="does not support a model that predicts a number"):
        attacked(method=ranking)
