"""Trainings, answers and jobs of every family give what was recorded: the bits on the same machine, else the curves.

Steps marked slow run only where ANAMORPH_ALL_GOLDENS is set. Recorded anew with `python -m tests.golden.record`.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from models import family
from tests.golden.runs import Runner, fingerprint
from tests.workers.conftest import place, storage  # noqa: F401 fixtures
from workers import devices

FOLDER = Path(__file__).parent
SAME_BITS = json.loads((FOLDER / "fingerprint.json").read_text()) == fingerprint()
ALL = bool(os.environ.get("ANAMORPH_ALL_GOLDENS"))


@pytest.fixture(autouse=True)
def on_one_core(monkeypatch):
    """The order in which sums are taken depends on the number of threads."""
    monkeypatch.setattr(devices, "use_threads", lambda wanted: None)
    monkeypatch.setattr(family, "computes_bf16", lambda device: False)  # its bits depend on the processor
    monkeypatch.setenv("ANAMORPH_DEVICE", "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("runs/*.json")), ids=lambda file: file.stem)
def test_recorded_runs_give_the_same_results(place, file):  # noqa: F811
    runner, wrong = Runner(), []
    for entry in json.loads(file.read_text()):
        if ALL or not entry.get("slow"):
            wrong += [
                f"{json.dumps(entry['step'])}: {line}"
                for line in differences(entry["result"], runner.run(entry["step"]))
            ]
    assert not wrong, "\n".join(wrong[:40])


def differences(old: Any, new: Any, path: str = "", curve: bool = False) -> list[str]:
    """Where `new` is not `old`. New members are allowed; on another machine only structure, shapes and curves count."""
    if isinstance(old, dict) and isinstance(new, dict):
        lost = [f"{path}/{name} is missing" for name in old.keys() - new.keys()]
        common = [name for name in old if name in new]
        return lost + [
            line
            for name in common
            for line in differences(old[name], new[name], f"{path}/{name}", curve or name == "curve")
        ]
    if isinstance(old, list) and isinstance(new, list) and (len(old) == len(new) or not SAME_BITS):
        return [
            line
            for index, pair in enumerate(zip(old, new, strict=False))
            for line in differences(*pair, f"{path}/{index}", curve)
        ]
    return [] if alike(old, new, curve) else [f"{path} was {old}, is {new}"]


def alike(old: Any, new: Any, curve: bool) -> bool:
    if SAME_BITS:
        return old == new
    if curve:
        return new == pytest.approx(old, rel=1e-2, abs=1e-3)
    return " sha256:" not in str(old) or str(old).partition(" sha256:")[0] == str(new).partition(" sha256:")[0]
