"""The robustness report against a real network and against models whose robustness is a sham."""

import json

import numpy as np
import pytest
import torch

from models.data import Columns
from models.evaluation.confidence import wilson
from models.reports.core.base import Subject
from models.reports.core.classification import unpack_hits
from models.reports.robustness import RobustnessReport
from models.types import ConfigError, DataError, DataSpec
from tests.models.attacks.nets import CLASSES, Victim, cnn, digits

QUICK = [{"method": "fgsm"}, {"method": "pgd", "steps": 20}, {"method": "square", "queries": 40}]


def subject(net=None, count: int = 40, classes=CLASSES, **more) -> Subject:
    images, labels = (part[1297 : 1297 + count] for part in digits())
    columns = Columns({"images": (images * 255).round().byte().numpy(), "labels": labels.numpy()})
    rows = {"images": count, "labels": count}
    data = DataSpec("labelled", 8, 8, 1, classes, {"train": rows, "validation": rows})
    model = Victim(net or cnn()).eval()
    return Subject(model, data, columns, columns, None, seed=3, **more)


def run(who: Subject, state=None, stop_after: int | None = None, **params):
    """Facts and result, or the last progress state after `stop_after` blocks."""
    report = RobustnessReport()
    walk = report.run(who, report.Params(**{"attacks": QUICK, "eps": ["8/255", "24/255"]} | params), state)
    last = None
    while True:
        try:
            step = next(walk)
        except StopIteration as end:
            return json.loads(json.dumps(end.value.facts)), end.value
        if step.progress_state is not None:
            last = json.loads(json.dumps(step.progress_state))
            if stop_after is not None and step.done >= stop_after:
                return last


def test_curve_falls_and_agrees_with_the_table_of_images():
    facts, result = run(subject())
    rows = result.tables["curve"]
    for row in rows:
        assert row["interval"][0] <= row["robust_accuracy"] <= row["interval"][1]
        assert row["robust_accuracy"] <= min(row[name] for name in ("fgsm", "pgd", "square"))
        assert row["random signs"] >= row["robust_accuracy"]
    assert rows[0]["robust_accuracy"] >= rows[1]["robust_accuracy"]
    assert facts["clean_accuracy"] > 0.9 > rows[1]["robust_accuracy"]
    turned = sum(row["right"] and row["pgd"] is not None for row in result.tables["images"])
    assert turned == facts["attacks"]["pgd"]["fooled"]
    assert facts["trust"]["confidence"] == "high", facts["trust"]["says"]
    assert {flag["name"] for flag in facts["trust"]["flags"]} >= {
        "randomised", "softmax", "zero_gradient", "optimises_at_inference", "black_box_wins", "logit_scale",
        "one_step_wins", "label_leaking", "unbounded_fails", "transfer_wins", "training_mode", "restart_spread",
    }  # fmt: skip
    assert result.pictures["gallery"].shape[3] == 8 * 4
    assert "high confidence" in facts["headline"]


def test_resumed_report_gives_the_same_result():
    _, whole = run(subject())
    for blocks in (1, 3):
        state = run(subject(), stop_after=blocks)
        assert len(state) == blocks
        _, again = run(subject(), state)
        assert again.facts == whole.facts and again.tables == whole.tables
        assert torch.equal(again.pictures["gallery"], whole.pictures["gallery"])


def test_minimum_norm_attack_covers_all_radii_in_one_run():
    facts, result = run(subject(count=24), attacks=[{"method": "ddn", "steps": 40}], norm="l2", eps=[0.1, 0.5, 1, 2])
    spent = facts["attacks"]["ddn"]
    assert spent["gradients"] <= 24 * 40
    held = [row["ddn"] for row in result.tables["curve"]]
    assert held == sorted(held, reverse=True) and held[0] > held[-1] == 0
    assert facts["attacks"]["ddn"]["distance_median"] > 0


class Sham(torch.nn.Module):
    """Has a parameter, as models do."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))


class Loud(Sham):
    """Logits so large that float32 cross-entropy has no gradient left."""

    def forward(self, x):
        return cnn()(x) * 300


class Random(Sham):
    def forward(self, x):
        return cnn()(x) + torch.randn(len(x), 10)


class Steps(Sham):
    """Sees only coarse levels of the pixels: no gradient leads anywhere."""

    def forward(self, x):
        return cnn()((x * 4).round() / 4 + 0 * x)


@pytest.mark.parametrize(
    ("net", "flag"),
    [(Loud(), "logit_scale"), (Random(), "randomised"), (Steps(), "unbounded_fails"), (Steps(), "black_box_wins")],
)
def test_false_robustness_raises_its_flag(net, flag):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        facts, _ = run(subject(net, count=24), eps=["40/255"])
    raised = [item["name"] for item in facts["trust"]["flags"] if item["raised"]]
    assert flag in raised
    assert facts["trust"]["confidence"] == "low" and "Do not trust" in facts["headline"]


def test_without_a_strong_attack_the_confidence_is_low():
    facts, _ = run(subject(count=8), attacks=["fgsm"])
    assert facts["trust"]["confidence"] == "low" and "20 steps" in facts["trust"]["says"]


def test_examples_made_on_another_model_are_shown_to_this_one():
    facts, _ = run(subject(count=16, others={"twin": Victim(cnn()).eval()}), attacks=["fgsm"], eps=["40/255"])
    assert facts["attacks"]["from twin"]["fooled"] > 4
    with pytest.raises(ConfigError, match="this model's shape"):
        run(subject(others={"large": Victim(cnn(), shape=(1, 9, 9)).eval()}))


def test_labels_are_matched_by_name():
    turned = tuple(reversed(CLASSES))
    facts, _ = run(subject(count=20, classes=turned), attacks=["fgsm"])
    assert facts["clean_accuracy"] < 0.2
    with pytest.raises(DataError, match="has no class"):
        run(subject(count=20, classes=(*CLASSES[:9], "ten", "eleven")))


@pytest.mark.parametrize(
    "params", [{"attacks": ["magic"]}, {"attacks": ["jsma"]}, {"attacks": [{"method": "pgd", "stepz": 1}]}]
)
def test_attacks_that_cannot_run_are_refused_by_name(params):
    with pytest.raises(ConfigError):
        run(subject(count=4), **params)


def test_wilson_intervals_contain_the_rate():
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 20)[0] == 0 and wilson(20, 20)[1] == 1
    low, high = wilson(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-3) and high == pytest.approx(0.5962, abs=1e-3)
    draws = np.random.default_rng(0).binomial(60, 0.2, 4000)
    assert np.mean([wilson(hits, 60)[0] <= 0.2 <= wilson(hits, 60)[1] for hits in draws]) > 0.93
    assert unpack_hits([5, 0], 3).tolist() == [[True, False, True], [False, False, False]]
