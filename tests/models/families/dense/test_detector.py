"""Detections, average precision and the detector against answers known beforehand."""

import math

import pytest
import torch

from models.data import Columns
from models.families.dense.detector import Detector
from models.nn.boxes import Precision, average_precision, detections, draw_boxes, matches, overlap, without_padding
from models.training.loop import Training
from models.types import DataError, DataSpec
from tests.models.data import dataset


def maps(*cells: tuple[int, int, int, float, list[float]], classes: int = 2, size: int = 8) -> torch.Tensor:
    """Maps with one logit at each (class, row, column, logit, box), -9 elsewhere."""
    found = torch.full((1, classes + 4, size, size), -9.0)
    for kind, row, column, logit, box in cells:
        found[0, kind, row, column] = logit
        found[0, classes:, row, column] = torch.tensor(box)
    return found


def test_overlap_is_intersection_over_union():
    one = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    other = torch.tensor([[2.0, 0, 6, 4], [8, 8, 9, 9], [1, 1, 3, 3]])
    assert torch.allclose(overlap(one, other), torch.tensor([[8 / 24, 0, 4 / 16], [0, 0, 0]]))


def test_peaks_become_detections_the_surest_first_and_weak_ones_are_left_out():
    found = without_padding(
        detections(maps((0, 1, 1, 1.0, [0, 0, 4, 4]), (1, 5, 5, 3.0, [4, 4, 8, 8]), (0, 6, 1, -2.0, [0, 5, 3, 8])))[0]
    )
    assert found[:, 4].tolist() == [1, 0]
    assert found[:, 5].tolist() == pytest.approx([1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    assert found[0, :4].tolist() == [4, 4, 8, 8]


def test_of_two_of_a_class_on_one_place_the_surer_stays_and_another_class_does_too():
    twice = maps((0, 1, 1, 1.0, [0, 0, 4, 4]), (0, 1, 4, 2.0, [0, 0, 4, 5]), (1, 4, 1, 1.5, [0, 0, 4, 4]))
    assert without_padding(detections(twice)[0])[:, 4].tolist() == [0, 1]
    assert without_padding(detections(twice)[0])[0, 3] == 5
    assert len(without_padding(detections(twice, max_iou=0.9)[0])) == 3


def test_suppression_is_by_boxes_that_stand_themselves():
    """The first covers the second and the second the third, which the first does not: it stays."""
    chain = maps((0, 1, 1, 3.0, [0, 0, 6, 2]), (0, 1, 4, 2.0, [2, 0, 8, 2]), (0, 1, 7, 1.0, [4, 0, 10, 2]))
    assert without_padding(detections(chain, max_iou=0.4)[0])[:, 0].tolist() == [0, 4]


def test_a_second_detection_of_an_object_is_no_hit_and_labels_count():
    truth = torch.tensor([[0.0, 0, 4, 4, 1]])
    found = torch.tensor([[0.0, 0, 4, 4, 0, 0.9], [0, 0, 4, 3, 1, 0.8], [0, 0, 4, 4, 1, 0.7]])
    assert matches(found, truth, [0.5, 0.8]).tolist() == [[False, False], [True, False], [False, True]]


def test_average_precision_by_hand():
    # recall .5 at precision 1, recall 1 at precision 2/3: 51 points of 1 (0 to .5) and 50 of 2/3
    assert float(average_precision(torch.tensor([1.0, 0.0, 1.0]), 2)) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert float(average_precision(torch.tensor([]), 3)) == 0
    assert float(average_precision(torch.tensor([1.0]), 4)) == pytest.approx(26 / 101)


def test_perfect_detections_have_precision_one_and_shifted_ones_lose_the_strict_thresholds():
    truth = torch.tensor([[2.0, 2, 12, 12, 0], [0, 0, 0, 0, -1]])
    exact, shifted = Precision(2), Precision(2)
    exact.add(torch.tensor([[2.0, 2, 12, 12, 0, 0.9]]), truth)
    shifted.add(torch.tensor([[4.0, 2, 14, 12, 0, 0.9]]), truth)  # overlap 80 / 120
    assert exact.summary() == {"map50": 1.0, "map": 1.0}
    assert shifted.summary() == {"map50": 1.0, "map": pytest.approx(0.4)}
    assert torch.isnan(exact.by_class()[1]).all()


def test_boxes_are_drawn_inside_the_picture():
    table = torch.tensor([[[2.0, 1, 6, 5, 0, 0.9], [-3, -3, 20, 20, 1, 0.5], [0, 0, 0, 0, -1, 0]]])
    picture = draw_boxes(torch.zeros(1, 1, 8, 8), table, torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    red, green = picture[0, 0] > 0, picture[0, 1] > 0
    assert red.sum() == 12 and red[1, 2:6].all() and red[4, 2:6].all() and not red[2:4, 3:5].any()
    assert green.sum() == 28


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 17, 33)])
def test_a_detector_learns_where_bright_squares_are(shape):
    """Boxes of odd and even sizes, any image size: after a little training all are found with the right class."""
    channels, height, width = shape
    draws = torch.Generator().manual_seed(0)
    images = torch.full((48, *shape), 40, dtype=torch.uint8)
    boxes = torch.zeros(48, 1, 5)
    for image, box in zip(images, boxes, strict=True):
        side = int(torch.randint(5, 9, (), generator=draws))
        top, left = (int(torch.randint(0, end - side, (), generator=draws)) for end in (height, width))
        kind = int(torch.randint(0, 2, (), generator=draws))
        image[:, top : top + side, left : left + side] = 250 if kind else 140
        box[0] = torch.tensor([left, top, left + side, top + side, kind])
    columns = Columns({"images": images.numpy(), "boxes": boxes.numpy()})
    spec = DataSpec("detection", height, width, channels, ("dim", "bright"), {"train": {"images": 48, "boxes": 48}})
    torch.manual_seed(0)
    config = {"images": 16 * 140, "batch_size": 16, "width": 8, "levels": 1, "learning_rate": 0.005}
    training = Training(Detector.create(config, spec), columns, columns)
    for _ in training.run():
        pass
    measured = training.finish()
    assert measured["map50"] > 0.7 > 0.3 > measured["map50_usual_boxes"]
    assert {"ap50:dim", "ap50:bright"} <= measured.keys()


def test_images_without_objects_are_data_too():
    spec, train, validation = dataset("detection", (1, 16, 16))
    for split in (train, validation):
        split.columns["boxes"][..., 4] = -1
    training = Training(Detector.create({"images": 8, "batch_size": 4}, spec), train, validation)
    for step in training.run():
        assert all(torch.isfinite(value) for value in step.metrics.values())
    assert training.finish()["map"] == 0


def test_a_dataset_without_classes_is_refused():
    with pytest.raises(DataError, match="classes"):
        Detector.create({}, DataSpec("detection", 16, 16, 1, None, {"train": {"images": 9, "boxes": 9}}))
