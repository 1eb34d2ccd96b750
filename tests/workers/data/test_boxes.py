"""Datasets with boxes: what boxes.csv and arrays of boxes say, what is refused by name, and how boxes follow images."""

from itertools import islice

import numpy as np
import pytest

from app.core.errors import InvalidDataset
from tests.workers.pictures import npz_file, pixels, png, read, zip_file
from workers import builtins

pytestmark = pytest.mark.usefixtures("storage")
HEAD = "file,label,left,top,right,bottom"


def archive(tmp_path, *lines: str, count: int = 10, head: str = HEAD, **size):
    members = {f"images/{index}.png": png(index, **size) for index in range(count)}
    members["boxes.csv"] = "\n".join([head, *lines]).encode()
    return zip_file(tmp_path / "a.zip", members)


def found(opened, index: int) -> list[list[float]]:
    """The boxes stored with the picture number `index`, wherever the split put it."""
    for side in (opened.train, opened.validation):
        for row, image in enumerate(side["images"]):
            if np.array_equal(image, pixels(index, *image.shape[1:])):
                assert (side["boxes"][row, side["counts"][row] :, 4] == -1).all()
                return side["boxes"][row, : side["counts"][row]].tolist()
    raise LookupError(index)


def reasons(report) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in report.refused}


def test_a_table_of_boxes_becomes_columns_filled_up_and_counted(tmp_path):
    lines = ["0.png,dog,1,2,5,7", "0.png,cat,0,0,12,12", "images/1.png,dog,3.5,3,6,4.25"]
    opened, report = read(archive(tmp_path, *lines))
    assert opened.facts["layout"] == "detection" and opened.facts["classes"] == ["cat", "dog"]
    assert opened.facts["columns"]["train"].keys() == {"images", "boxes", "counts"}
    assert isinstance(opened.train["boxes"], np.memmap) and opened.train["boxes"].dtype == np.float32
    assert opened.train["boxes"].shape[1:] == (2, 5) and opened.train["counts"].dtype == np.int64
    assert sorted(found(opened, 0)) == [[0, 0, 12, 12, 0], [1, 2, 5, 7, 1]]
    assert found(opened, 1) == [[3.5, 3, 6, 4.25, 1]]
    assert found(opened, 2) == []  # the table says nothing of it: no object
    assert report.refused_count == 0


def test_boxes_follow_their_image_when_it_is_scaled_and_cropped(tmp_path):
    lines = ["0.png,dog,8,0,16,8", "0.png,dog,0,0,2,8", "1.png,dog,6,2,10,4"]
    opened, report = read(archive(tmp_path, *lines, height=16, width=24), image_size="8")
    # the middle 16 columns stay, at half the size: x -> (x - 4) / 2
    boxes = {tuple(box) for side in (opened.train, opened.validation) for row in side["boxes"] for box in row.tolist()}
    assert {box for box in boxes if box[4] >= 0} == {(2, 0, 6, 4, 0), (1, 1, 3, 2, 0)}
    assert any("1 boxes were removed" in sentence for sentence in report.warnings)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("3.png,dog,0,0,13,4", "not inside its image of 12 x 12"),
        ("3.png,dog,-1,0,4,4", "not inside"),
        ("3.png,dog,4,0,4,4", "no area"),
        ("3.png,dog,0,0,four,4", "right must be a number; found 'four'"),
        ("3.png,dog,0,0,nan,4", "must be finite"),
        ("3.png,,0,0,4,4", "The column label is empty"),
        (",dog,0,0,4,4", "The column file is empty"),
    ],
)
def test_an_invalid_line_is_named_and_its_image_refused(tmp_path, line, reason):
    opened, report = read(archive(tmp_path, "0.png,dog,1,2,5,7", line))
    assert reason in reasons(report)["boxes.csv line 3"]
    kept = sum(len(side["images"]) for side in (opened.train, opened.validation))
    assert kept == (9 if line.startswith("3.png") else 10)
    if line.startswith("3.png"):
        assert "One of its boxes" in reasons(report)["images/3.png"]


def test_a_line_without_box_means_no_objects_missing_files_are_named(tmp_path):
    opened, report = read(archive(tmp_path, "0.png,dog,1,2,5,7", "1.png,,,,,", "gone.png,dog,0,0,1,1"))
    assert found(opened, 1) == []
    assert "the archive does not have it" in reasons(report)["gone.png"]


def test_the_split_of_the_table_is_kept(tmp_path):
    lines = [f"{index}.png,dog,0,0,4,4,{'val' if index < 3 else 'train'}" for index in range(10)]
    opened, _ = read(archive(tmp_path, *lines, head=f"{HEAD},split"))
    assert len(opened.validation["images"]) == 3
    assert {image.tobytes() for image in opened.validation["images"]} == {pixels(i).tobytes() for i in range(3)}


@pytest.mark.parametrize(
    ("lines", "head", "sentence"),
    [
        (["0.png,dog,0,0,4"], "file,label,left,top,right", "Missing in boxes.csv: bottom"),
        ([], HEAD, "no line after its header"),
        (["0.png,,,,,"], HEAD, "No image has a box"),
    ],
)
def test_a_table_without_needed_columns_is_refused(tmp_path, lines, head, sentence):
    with pytest.raises(InvalidDataset, match=sentence):
        read(archive(tmp_path, *lines, head=head))


def test_the_layout_asked_for_needs_its_table(tmp_path):
    with pytest.raises(InvalidDataset, match=r"boxes\.csv at the top level"):
        read(zip_file(tmp_path / "a.zip", {"images/0.png": png(0)}), layout="detection")


def arrays(count: int = 10, **changes) -> dict:
    boxes = np.zeros((count, 2, 5))
    boxes[:, :, 4] = -1
    boxes[:, 0] = 1, 2, 6, 8, 1
    boxes[0, 1] = 0, 0, 3, 3, 0
    return {"images": np.stack([pixels(index) for index in range(count)]), "boxes": boxes, **changes}


def test_an_array_of_boxes_is_read_and_names_its_classes(tmp_path):
    opened, _ = read(npz_file(tmp_path / "a.npz", **arrays(classes=np.array(["cat", "dog"]))))
    assert opened.facts["layout"] == "detection" and opened.facts["classes"] == ["cat", "dog"]
    assert found(opened, 0) == [[1, 2, 6, 8, 1], [0, 0, 3, 3, 0]] and found(opened, 4) == [[1, 2, 6, 8, 1]]


def test_a_bad_box_of_an_array_is_named_by_its_place(tmp_path):
    given = arrays()
    given["boxes"][7, 0, 2] = 99
    opened, report = read(npz_file(tmp_path / "a.npz", **given))
    assert "not inside" in reasons(report)["boxes[7][0]"]
    assert sum(len(side["images"]) for side in (opened.train, opened.validation)) == 9


@pytest.mark.parametrize(
    ("boxes", "sentence"),
    [
        (np.zeros((10, 2, 4)), r"shape \(N, M, 5\); it has the shape \[10, 2, 4\]"),
        (np.full((10, 1, 5), 0.5), "must be whole"),
        (np.full((10, 1, 5), np.nan), "must be whole"),
        (np.full((10, 1, 5), 4000), "-1 to 999"),
        (np.full((9, 1, 5), -1), "differ in length"),
        (np.full((10, 65, 5), -1), "more than 64 boxes"),
    ],
)
def test_an_array_of_another_form_is_refused(tmp_path, boxes, sentence):
    with pytest.raises(InvalidDataset, match=sentence):
        read(npz_file(tmp_path / "a.npz", **arrays(boxes=boxes)))


@pytest.mark.parametrize("name", ["scattered-digits", "scattered-emoji"])
def test_scattered_things_lie_in_their_boxes_and_are_the_same_each_time(name):
    first, again = (list(islice(builtins.LOADERS[name](64).each, 12)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.images["images"], other.images["images"]) and one.boxes == other.boxes
        assert 1 <= len(one.boxes) <= 4
        for left, top, right, bottom, label in one.boxes:
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64 and 0 <= label < 10
            assert 10 <= max(right - left, bottom - top) <= 30
            piece = one.images["images"][:, int(top) : int(bottom), int(left) : int(right)]
            assert np.ptp(piece) > 60  # something is there
