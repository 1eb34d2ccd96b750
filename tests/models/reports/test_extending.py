"""The report of docs/extend/report.md is found by the registry, measures what it says and resumes."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from app.core.catalog import cost
from models import registry
from models.catalog import describe_report
from models.types import DataError
from tests.models.attacks.nets import CLASSES, cnn
from tests.models.reports.test_robustness import subject

PAGE = (Path(__file__).parents[3] / "docs" / "extend" / "report.md").read_text()


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The class of the page, saved in a package of its own and found there by the registry."""
    package = tmp_path / "example_reports"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "calibration.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.KINDS, "reports", ("example_reports", registry.KINDS["reports"][1]))
    yield registry.members.__wrapped__("reports")["calibration"]
    for name in [name for name in sys.modules if name.startswith("example_reports")]:
        del sys.modules[name]


def finish(run) -> tuple[dict, list[str]]:
    """Facts and tables of a report, and its progress states as a checkpoint holds them."""
    states = []
    with torch.no_grad():
        while True:
            try:
                states.append(json.dumps(next(run).progress_state))
            except StopIteration as end:
                return {"facts": end.value.facts, "tables": end.value.tables}, states


class Constant(nn.Module):
    """Predicts class 0 with probability p for every image."""

    def __init__(self, p: float):
        super().__init__()
        self.probabilities = nn.Parameter(torch.tensor([p, *[(1 - p) / 9] * 9]), requires_grad=False)

    def forward(self, x):
        return self.probabilities.log().expand(len(x), -1)


def test_ece_of_a_constant_prediction_is_confidence_minus_accuracy(example):
    who = subject(Constant(0.75), count=60)
    result, _ = finish(example().run(who, example.Params(bins=4)))
    accuracy = float((who.validation.columns["labels"] == 0).mean())
    assert result["facts"]["ece"] == pytest.approx(0.75 - accuracy, abs=1e-6)
    assert [row["images"] for row in result["tables"]["bins"]] == [60]


def test_example_resumes_with_the_same_result(example, monkeypatch):
    monkeypatch.setattr(sys.modules[example.__module__], "BATCH", 16)
    who, params = subject(count=60), example.Params(images=50)
    whole, states = finish(example().run(who, params))
    assert len(states) == 4 and whole["facts"]["images"] == 50
    resumed, rest = finish(example().run(who, params, json.loads(states[1])))
    assert resumed == whole and len(rest) == 2


def test_example_declares_its_price_and_what_it_needs(example):
    entry, shape = describe_report(example), {"validation": 60, "train": 60, "classes": 10, "pixels": 64}
    price = cost.of_report({"attacks": {}, "defences": {}, "detectors": {}}, entry, {"images": 50, "bins": 10}, shape)
    assert price == {"forwards": 50, "backwards": 0, "passes": 50}
    assert all("description" in field for field in entry["params"]["properties"].values())
    with pytest.raises(DataError, match="classes differ"):
        next(example().run(subject(cnn(), classes=CLASSES[::-1]), example.Params()))
