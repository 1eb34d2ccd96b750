"""The attack of docs/extend/attack.md is found by the registry and keeps the contract of all attacks."""

import inspect
import re
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from models import registry
from models.attacks.core.access import WhiteBox
from models.attacks.criteria.classification import Misclassified
from tests.models.attacks import test_contract as contract
from tests.models.attacks.nets import cnn, victims

PAGE = (Path(__file__).parents[3] / "docs" / "extend" / "attack.md").read_text()
CONTRACT = [function for name, function in vars(contract).items() if name.startswith("test_")]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The class of the page, saved in a package of its own and found there by the registry."""
    package = tmp_path / "example_attacks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nifgsm.py").write_text(re.search(r"```python\n(.*?)```", PAGE, re.S)[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.KINDS, "attacks", ("example_attacks", registry.KINDS["attacks"][1]))
    members = registry.members.__wrapped__("attacks")
    monkeypatch.setattr(contract, "attacks", lambda: members)
    yield members["nifgsm"]
    for name in [name for name in sys.modules if name.startswith("example_attacks")]:
        del sys.modules[name]


@pytest.mark.parametrize("function", CONTRACT, ids=lambda function: function.__name__.removeprefix("test_"))
def test_example_keeps_the_contract(example, function):
    axes = [[{"name": "nifgsm", "norm": norm} for norm in example.norms]]
    for mark in getattr(function, "pytestmark", ()):
        names = [mark.args[0]] if isinstance(mark.args[0], str) else mark.args[0]
        if "name" not in names:
            axes.append([dict(zip(names, v if len(names) > 1 else [v], strict=True)) for v in mark.args[1]])
    for settings in product(*axes):
        values = {name: value for part in settings for name, value in part.items()}
        function(**{name: values[name] for name in inspect.signature(function).parameters})


def test_example_costs_what_it_declares_and_fools_the_network(example):
    x, y = victims(20)
    result = example(eps=40 / 255).run(WhiteBox(cnn()), x, Misclassified(y))
    assert result.success.float().mean() > 0.8
    assert int(result.queries.max()) <= 10 + 3
    assert torch.equal(result.gradients, torch.full_like(y, 10))
