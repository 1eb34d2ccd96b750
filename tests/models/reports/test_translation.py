"""The translation report against a model whose answer is known: it inverts brightness."""

import numpy as np
import pytest
import torch
from torch import nn

from models.capabilities import Translates
from models.data import Columns
from models.family import Family
from models.reports.core.base import Subject
from models.reports.translation import TranslationReport
from models.types import DataError, DataSpec


class Inverter(Translates, Family):
    name = "inverter"
    summary = "for tests"
    needs = ()
    directions = ("ab",)

    def __init__(self, config, data):
        super().__init__(config, data)
        self.scale = nn.Parameter(torch.ones(1))

    def optimisers(self):
        return {}

    def step(self, batch, optimisers, context):
        return {}

    def translate(self, images, direction):
        return 1 - images


def side(seed: int, count: int = 40) -> np.ndarray:
    """Class 0 has a bright bar to the left, class 1 to the right, on a dark noisy ground."""
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 60, (count, 1, 12, 12))
    for index in range(count):
        images[index, 0, :, slice(0, 5) if index % 2 == 0 else slice(7, 12)] += 150
    return images.astype(np.uint8)


def subject(layout: str, twins: bool = False, labels: bool = False, inverted: bool = True) -> Subject:
    names = ("input", "target") if layout == "paired" else ("a", "b")
    splits = []
    for seed in (0, 1):
        images = side(seed)
        other = 255 - images if inverted else side(9)
        columns = dict(zip(names, (images, other), strict=True))
        if labels:
            columns |= {"a_labels": np.arange(40) % 2, "b_labels": np.arange(40) % 2}
        splits.append(columns)
    rows = {"train": dict.fromkeys(names, 40), "validation": dict.fromkeys(names, 40)}
    data = DataSpec(layout, 12, 12, 1, ("left", "right") if labels else None, rows, twins=twins)
    return Subject(Inverter.create({}, data).eval(), data, *(Columns(split) for split in splits), None, seed=0)


def finish(who: Subject, **params):
    run = TranslationReport().run(who, TranslationReport.Params(**params))
    progress = []
    while True:
        try:
            progress.append(next(run))
        except StopIteration as end:
            assert [step.done for step in progress] == sorted(step.done for step in progress)
            assert progress[-1].done == progress[-1].total
            return end.value


def test_perfect_translation_beats_the_baselines():
    result = finish(subject("paired"))
    table = {row["way"]: row for row in result.tables["ways"]}
    assert table.keys() == {"translated", "copy", "mean", "colour", "nearest", "real"}
    assert table["translated"]["l1"] == pytest.approx(0, abs=1e-6) and result.facts["l1"] == table["translated"]["l1"]
    assert all(table[way]["l1"] > 0.02 for way in ("copy", "mean", "colour", "nearest"))
    assert abs(table["translated"]["kid"]) < table["copy"]["kid"]
    assert table["translated"]["kid_low"] <= table["translated"]["kid"] <= table["translated"]["kid_high"]
    assert result.pictures["translated"].shape[1:] == (1, 12, 12) and not result.notes


def test_without_pairs_l1_and_psnr_are_missing():
    result = finish(subject("unpaired"))
    assert "l1" not in result.facts and "val/A" in result.notes[0]
    assert "l1" in finish(subject("unpaired", twins=True)).facts


def test_class_kept_is_measured_by_a_classifier_of_the_target_domain():
    assert finish(subject("unpaired", labels=True)).facts["class_kept"] > 0.9
    # the target's bars stand where the source's do, but a copy of other brightness is no such image
    assert "class_kept" not in finish(subject("unpaired")).facts


def test_wrong_direction_and_layout_are_refused():
    who = subject("paired")
    with pytest.raises(DataError, match="ab only"):
        finish(who, direction="ba")
    with pytest.raises(DataError, match="paired or unpaired"):
        TranslationReport.check(who.model, DataSpec("plain", 12, 12, 1))
