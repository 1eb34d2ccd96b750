"""Reports of attacks on segmenters and detectors, over small datasets with known answers."""

import json

import numpy as np
import pytest
import torch

from models.data import Columns
from models.reports.core.base import Subject
from models.reports.core.dense_attack import remarks
from models.reports.detection_attack import DetectionAttack
from models.reports.segmentation_attack import SegmentationAttack
from models.types import DataError, DataSpec
from tests.models.attacks.fields import CLASSES, SIZE, Blobs, Fields, blob_images, scenes


def segments(count: int = 20) -> Subject:
    images, masks = scenes(count, seed=5)
    columns = Columns({"images": (images * 255).round().byte().numpy(), "masks": masks.byte().numpy()})
    rows = {"images": count, "masks": count}
    data = DataSpec("segmentation", SIZE, SIZE, 3, CLASSES, {"train": rows, "validation": rows})
    return Subject(Fields().eval().requires_grad_(False), data, columns, columns, None, seed=3)


def objects() -> Subject:
    images, boxes = blob_images()
    columns = Columns({"images": (images * 255).round().byte().numpy(), "boxes": boxes.numpy()})
    data = DataSpec("detection", SIZE, SIZE, 3, ("red", "blue"), {"validation": {"images": 3, "boxes": 3}})
    return Subject(Blobs().eval().requires_grad_(False), data, columns, columns, None, seed=3)


def steps_of(report, who: Subject, state=None, **params):
    """(done, progress state as JSON) of each step, and the result."""
    run, states = report().run(who, report.Params(**params), state), []
    with torch.no_grad():
        while True:
            try:
                step = next(run)
            except StopIteration as end:
                return states, end.value
            assert 0 < step.done <= step.total
            states.append((step.done, json.dumps(step.progress_state)))


FEW = {"attacks": ["segpgd", "fgsm"], "eps": ["4/255", "24/255"], "steps": 5}


def test_miou_falls_with_eps_and_below_the_controls():
    states, result = steps_of(SegmentationAttack, segments(), **FEW)
    clean, rows = result.facts["clean_miou"], result.tables["attacks"]
    assert clean > 0.85 and [row["eps_255"] for row in rows] == [4, 24, 4, 24]
    small, large = rows[:2]
    assert clean > small["miou"] > large["miou"]
    for control in ("random_signs", "shuffled"):
        assert clean - large[f"miou_{control}"] < 0.3 * (clean - large["miou"])
    assert result.facts["worst_miou"] == min(row["miou"] for row in rows)
    assert result.curves[0].series["segpgd"] == [clean, small["miou"], large["miou"]]
    assert result.pictures["segpgd"].shape == (6, 3, SIZE, 5 * SIZE)
    assert states[-1][0] == 20 * 5


def test_report_resumed_at_any_point_gives_the_same_result():
    states, whole = steps_of(SegmentationAttack, segments(), **FEW)
    for _, state in states[:: len(states) // 3]:
        _, again = steps_of(SegmentationAttack, segments(), state=json.loads(state), **FEW)
        assert (again.facts, again.tables) == (whole.facts, whole.tables)


@pytest.mark.parametrize("goal", ["vanish", "fabricate", "mislabel"])
def test_detections_before_and_after_by_goal(goal):
    _, result = steps_of(DetectionAttack, objects(), attacks=["bim"], eps=[0.5], steps=30, goal=goal)
    assert result.facts["clean_map50"] == result.facts["clean_found"] == 1 and result.facts["clean_false"] == 0
    (row,) = result.tables["attacks"]
    assert row["fooled"] == 1
    if goal == "vanish":
        assert row["map50"] == row["found"] == 0
    if goal == "fabricate":
        assert row["false"] >= 1
    if goal == "mislabel":
        assert row["map50"] < 0.6


def test_attack_no_better_than_noise_gets_a_note():
    row = {"attack": "pgd", "eps_255": 8.0, "miou": 0.7, "miou_random_signs": 0.72, "miou_shuffled": 0.89}
    notes = remarks([row], 0.9, "miou")
    assert len(notes) == 1 and "random signs" in notes[0]


def test_other_classes_and_unknown_attacks_are_refused():
    who = segments(4)
    other = DataSpec("segmentation", SIZE, SIZE, 3, ("a", "b"), who.data.columns)
    with pytest.raises(DataError, match="2 classes, the model 3"):
        SegmentationAttack.check(who.model, other)
    with pytest.raises(ValueError, match="segpgd"):
        SegmentationAttack.Params(attacks=["deepfool"])
    with pytest.raises(ValueError, match="eps"):
        SegmentationAttack.Params(eps=[-1])
    assert np.isfinite(SegmentationAttack.Params().eps).all()
