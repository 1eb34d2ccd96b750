"""npz uploads: axes, levels, columns, and what is refused."""

import numpy as np
import pytest

from app.core.errors import InvalidDataset
from tests.workers.pictures import npz_file, pixels, read

pytestmark = pytest.mark.usefixtures("storage")


def stack(count: int = 10, height: int = 9, width: int = 14, channels: int = 3) -> np.ndarray:
    return np.stack([pixels(index, height, width, channels) for index in range(count)])


def both(opened, column: str) -> np.ndarray:
    return np.concatenate([side[column] for side in (opened.train, opened.validation) if column in side])


def same_images(opened, expected: np.ndarray, column: str = "images") -> bool:
    return sorted(row.tobytes() for row in both(opened, column)) == sorted(row.tobytes() for row in expected)


@pytest.mark.parametrize("compress", [False, True])
def test_axes_are_recognised(tmp_path, compress):
    colour, gray = stack(), stack(channels=1)
    for array, expected in ((colour, colour), (colour.transpose(0, 2, 3, 1), colour), (gray, gray),
                            (gray.transpose(0, 2, 3, 1), gray), (gray[:, 0], gray)):  # fmt: skip
        for order in (np.ascontiguousarray, np.asfortranarray):
            opened, _ = read(npz_file(tmp_path / "a.npz", compress, images=order(array)))
            assert opened.facts["layout"] == "plain" and same_images(opened, expected)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda a: a.astype(np.float32) / 255, None),
        (lambda a: a.astype(np.float64) / 255, None),
        (lambda a: a.astype(np.float32), None),
        (lambda a: a, np.int64),
        (lambda a: a, ">i4"),
        (lambda a: a, np.uint16),
        (lambda a: a.astype(np.uint16) * 257, None),
    ],
)
def test_levels_are_recognised(tmp_path, make, dtype):
    array = make(stack())
    opened, _ = read(npz_file(tmp_path / "a.npz", images=array if dtype is None else array.astype(dtype)))
    assert same_images(opened, stack())


def test_booleans_are_black_and_white(tmp_path):
    opened, _ = read(npz_file(tmp_path / "a.npz", images=stack(channels=1)[:, 0] > 99))
    assert same_images(opened, (stack(channels=1) > 99) * np.uint8(255))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": stack() / 127.5 - 1}, "values from -1 to 1"),
        ({"images": np.full((3, 9, 9), np.nan)}, "NaN"),
        ({"images": np.full((3, 9, 9), 300)}, "values from 300 to 300"),
        ({"images": np.zeros((3, 9, 9, 5), np.uint8)}, r"shape \[3, 9, 9, 5\]"),
        ({"images": np.zeros((3, 9), np.uint8)}, r"shape \[3, 9\]"),
        ({"images": np.array([[["a"]]])}, "does not hold numbers"),
        ({"images": np.array([None, {}])}, "Python objects"),
        ({"images": np.zeros((0, 9, 9), np.uint8)}, "no usable image"),
        ({"images": np.zeros((2, 9000, 9), np.uint8)}, "9000 x 9 pixels"),
        ({"a": stack(), "b": np.zeros((0, 9, 14), np.uint8)}, "b is empty"),
        ({"a": stack(), "b": stack()}, "the same images"),
        ({"input": stack(), "target": stack()[:4]}, "input 10, target 4"),
        ({"pictures": stack()}, "no array with a known name"),
        ({"images": stack(), "labels": np.arange(9)}, "images 10, labels 9"),
        ({"images": stack(), "labels": np.arange(10) - 1}, "from -1 to 8"),
        ({"images": stack(), "labels": np.arange(10) * 200}, "from 0 to 1800; with 1000 classes"),
        (
            {"images": stack(), "labels": np.arange(10), "classes": np.array(["a", "b"])},
            "with 2 classes they must be from 0 to 1",
        ),
        ({"images": stack(), "labels": np.zeros(10, int)}, "one class"),
        ({"images": stack(), "labels": np.full(10, 2**31, "<u4").view("<U1")}, "not Unicode"),
        ({"images": stack(), "labels": np.array([b"\xff"] * 10)}, "not Unicode"),
        ({"images": stack(), "labels": np.eye(10)}, r"shape \[10, 10\]"),
        ({"images": stack(), "labels": np.linspace(0, 1, 10)}, "fractions"),
        ({"images": stack(), "targets": np.array([np.nan] * 10)}, "NaN"),
        ({"images": stack(), "targets": np.array(["a"] * 10)}, "does not hold numbers"),
        ({"images": stack(), "targets": np.full(10, 1e300)}, "float32"),
        ({"images": stack(), "masks": np.zeros((10, 9, 14), int), "labels": np.arange(10)}, "masks and labels"),
        ({"images": stack(), "masks": np.full((10, 9, 14), 256)}, "outside 0 to 255"),
        ({"images": stack(), "masks": np.zeros((10, 9, 14))}, "whole numbers"),
        ({"x_train": stack(), "y_test": np.arange(10), "y_train": np.arange(10)}, "no images for validation"),
    ],
)
def test_unusable_arrays_are_refused_with_the_reason(tmp_path, arrays, sentence):
    with pytest.raises(InvalidDataset, match=sentence):
        read(npz_file(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize(
    "labels",
    [np.arange(10) % 3, (np.arange(10) % 3)[:, None], np.arange(10) % 3 * 1.0, (np.arange(10) % 3).astype("u1")],
)
def test_labels_follow_their_images(tmp_path, labels):
    opened, _ = read(npz_file(tmp_path / "a.npz", images=stack(), labels=labels))
    assert opened.facts["layout"] == "labelled" and opened.facts["classes"] == ["0", "1", "2"]
    index = {image.tobytes(): number for number, image in enumerate(stack())}
    for side in (opened.train, opened.validation):
        assert side["labels"].tolist() == [index[image.tobytes()] % 3 for image in side["images"]]


def test_class_names_are_kept(tmp_path):
    names = np.array(["cat", "dog", "emu"])
    by_index, _ = read(npz_file(tmp_path / "a.npz", images=stack(), labels=np.arange(10) % 3, classes=names))
    by_name, _ = read(npz_file(tmp_path / "b.npz", images=stack(), labels=names[np.arange(10) % 3]))
    assert by_index.facts["classes"] == ["cat", "dog", "emu"] and by_name.digest == by_index.digest


def test_names_that_would_break_json_or_terminals_are_cleaned(tmp_path):
    names = np.array([0xD800, 0x1B, 0x3000], "<u4").view("<U1")  # a lone surrogate, escape, a wide space
    opened, _ = read(npz_file(tmp_path / "a.npz", images=stack(), labels=np.array(["a", "b", "c"])[np.arange(10) % 3],
                              classes=names))  # fmt: skip
    assert opened.facts["classes"] == ["a", "b", "c"]
    opened, _ = read(npz_file(tmp_path / "b.npz", images=stack(), labels=np.arange(10) % 3, classes=names))
    assert opened.facts["classes"] == ["?", "?", "\u3000"]


@pytest.mark.parametrize("names", [("x_train", "y_train", "x_test", "y_test"),
                                   ("train_images", "train_labels", "val_images", "val_labels")])  # fmt: skip
def test_the_names_of_known_collections_are_understood(tmp_path, names):
    arrays = dict(zip(names, (stack()[:8], np.arange(8) % 2, stack()[8:], np.array([1, 1])), strict=True))
    opened, _ = read(npz_file(tmp_path / "a.npz", **arrays))
    assert (opened.train["images"] == stack()[:8]).all() and (opened.validation["images"] == stack()[8:]).all()
    assert opened.train["labels"].tolist() == [0, 1] * 4 and opened.validation["labels"].tolist() == [1, 1]


def test_other_layouts(tmp_path):
    one, two = stack(), stack()[::-1].copy()
    paired, _ = read(npz_file(tmp_path / "a.npz", input=one, target=two))
    assert paired.facts["layout"] == "paired"
    index = {image.tobytes(): number for number, image in enumerate(one)}
    pairs = zip(both(paired, "input"), both(paired, "target"), strict=True)
    assert all(index[given.tobytes()] == 9 - index[wanted.tobytes()] for given, wanted in pairs)
    unpaired, _ = read(npz_file(tmp_path / "b.npz", a=one[:6], b=one[6:]))
    assert unpaired.facts["columns"] == {"train": {"a": 5, "b": 3}, "validation": {"a": 1, "b": 1}}
    assert same_images(unpaired, one[:6], "a") and same_images(unpaired, one[6:], "b")
    masks = one[:, 0] % 4
    for stored in (masks, masks[..., None].astype(np.int64)):
        segmented, _ = read(npz_file(tmp_path / "c.npz", images=one, masks=stored))
        assert segmented.facts["layout"] == "segmentation" and segmented.facts["classes"] == ["0", "1", "2", "3"]
        assert (both(segmented, "masks") == both(segmented, "images")[:, 0] % 4).all()
    attributes = {"ages": np.arange(10), "identities": np.array(list("bbaabbaabb")), "targets": np.arange(10) / 8}
    known, _ = read(npz_file(tmp_path / "d.npz", images=one, **attributes))
    assert known.facts["layout"] == "attributes" and known.facts["classes"] is None
    rows = [index[image.tobytes()] for image in both(known, "images")]
    assert both(known, "ages").tolist() == rows and both(known, "targets").tolist() == [row / 8 for row in rows]
    assert both(known, "identities").tolist() == ["ab".index("bbaabbaabb"[row]) for row in rows]


def test_the_layout_can_be_chosen(tmp_path):
    file = npz_file(tmp_path / "a.npz", images=stack(), labels=np.arange(10) % 2, extra=np.zeros(3))
    opened, report = read(file, layout="plain")
    assert opened.facts["classes"] is None and "labels" not in opened.train
    assert any("extra" in warning for warning in report.warnings)
    with pytest.raises(InvalidDataset, match="layout=paired needs the arrays input and target"):
        read(file, layout="paired")


def test_images_are_resized_and_recoloured(tmp_path):
    opened, _ = read(npz_file(tmp_path / "a.npz", images=stack(5, 40, 300)), image_size="20x30", channels=1)
    assert both(opened, "images").shape == (5, 1, 20, 30)
    with pytest.raises(InvalidDataset, match="40x300"):
        read(npz_file(tmp_path / "b.npz", images=stack(5, 40, 300)))
