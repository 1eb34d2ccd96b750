"""Every layout of a zip: what lies where becomes which column, class and side of the split."""

import csv
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from app.core.errors import InvalidDataset
from tests.workers.pictures import picture, pixels, png, read, saved, zip_file
from workers import codecs

pytestmark = pytest.mark.usefixtures("storage")


def both(opened, column: str) -> np.ndarray:
    """A column's rows of both sides of the split."""
    return np.concatenate([side[column] for side in (opened.train, opened.validation) if column in side])


def reasons(report) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in report.refused}


def table(*lines: list) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(lines)
    return file.getvalue().encode()


def test_an_import_needs_no_torch():
    code = "import sys, workers.data, workers.codecs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plain_images_are_stored_as_they_are(tmp_path):
    opened, report = read(zip_file(tmp_path / "a.zip", {f"{index}.png": png(index, 9, 14, 3) for index in range(25)}))
    assert opened.facts == {
        "layout": "plain", "height": 9, "width": 14, "channels": 3, "classes": None,
        "columns": {"train": {"images": 20}, "validation": {"images": 5}},
    }  # fmt: skip
    assert isinstance(opened.train["images"], np.memmap) and opened.train["images"].flags.c_contiguous
    assert {image.tobytes() for image in both(opened, "images")} == {pixels(i, 9, 14, 3).tobytes() for i in range(25)}
    assert report.refused_count == 0 and report.warnings == []


def test_class_folders_become_labels_in_natural_order(tmp_path):
    names = ["10", "9", "été", "日本", "class 2"]
    members = {f"{name}/{index}.png": png(hash((name, index)) % 2**32) for name in names for index in range(6)}
    owner = {pixels(hash((name, index)) % 2**32).tobytes(): name for name in names for index in range(6)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["layout"] == "labelled"
    assert opened.facts["classes"] == ["9", "10", "class 2", "été", "日本"]
    for side in (opened.train, opened.validation):
        for image, label in zip(side["images"], side["labels"], strict=True):
            assert opened.facts["classes"][label] == owner[image.tobytes()]
    assert both(opened, "labels").dtype == np.int64


def test_accents_written_by_macos_are_the_same_class(tmp_path):
    members = {"e\u0301te\u0301/1.png": png(1), "\u00e9t\u00e9/2.png": png(2), "b/3.png": png(3)}
    assert read(zip_file(tmp_path / "a.zip", members))[0].facts["classes"] == ["b", "été"]


def test_a_thousand_classes(tmp_path):
    members = {f"c{index}/x.png": png(index, 8, 8) for index in range(1000)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["classes"] == [f"c{index}" for index in range(1000)]
    members |= {"one more/x.png": png(1000, 8, 8)}
    with pytest.raises(InvalidDataset, match="1001 classes; between 2 and 1000"):
        read(zip_file(tmp_path / "b.zip", members))


def test_wrapper_folders_and_system_files_are_ignored(tmp_path):
    members = {"my data/cat/1.png": png(1), "my data/dog/2.png": png(2)}
    clean, _ = read(zip_file(tmp_path / "a.zip", {"cat/1.png": png(1), "dog/2.png": png(2)}))
    junk = dict.fromkeys(("__MACOSX/my data/cat/._1.png", "my data/.DS_Store", "my data/cat/Thumbs.db"), b"x")
    dirty, report = read(zip_file(tmp_path / "b.zip", members | junk))
    assert dirty.digest == clean.digest and report.refused_count == 0
    readme, report = read(zip_file(tmp_path / "c.zip", members | {"README.txt": b"hello"}))
    assert readme.digest == clean.digest and list(reasons(report)) == ["README.txt"]


def test_one_class_needs_the_layout_plain(tmp_path):
    file = zip_file(tmp_path / "a.zip", {"cats/1.png": png(1), "cats/2.png": png(2)})
    assert read(file)[0].facts["layout"] == "plain"
    with pytest.raises(InvalidDataset, match=r"found only cats/\.") as caught:
        read(file, layout="labelled")
    assert "layout=plain" in caught.value.remedy
    split = zip_file(tmp_path / "b.zip", {"train/cats/1.png": png(1), "val/cats/2.png": png(2)})
    with pytest.raises(InvalidDataset, match="one class"):
        read(split, layout="labelled")


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({f"{index}.heic": b"\0\0\0\x18ftypheic" for index in range(5)}, r"no image; its files end in \.heic"),
        ({}, "no usable image"),
        ({"1.png": png(1)}, r"one folder per class \(at least two\); found none"),
    ],
)
def test_labelled_says_why_there_are_no_classes(tmp_path, members, sentence):
    with pytest.raises(InvalidDataset, match=sentence) as caught:
        read(zip_file(tmp_path / "a.zip", members), layout="labelled")
    assert caught.value.remedy


def test_images_beside_folders_are_ambiguous(tmp_path):
    file = zip_file(tmp_path / "a.zip", {"1.png": png(1), "a/2.png": png(2), "b/3.png": png(3)})
    with pytest.raises(InvalidDataset, match="1 images at the top level and 2 in folders"):
        read(file)
    assert len(both(read(file, layout="plain")[0], "images")) == 3
    opened, report = read(file, layout="labelled")
    assert len(both(opened, "images")) == 2 and list(reasons(report)) == ["1.png"]


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test"), ("Training", "validation")])
def test_split_folders_are_honoured(tmp_path, names):
    members = {f"{names[index == 7]}/{'ab'[index % 2]}x/{index}.png": png(index) for index in range(8)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["classes"] == ["ax", "bx"]
    assert (opened.validation["images"][0] == pixels(7)).all() and opened.validation["labels"].tolist() == [1]
    assert len(opened.train["images"]) == 7


def test_only_a_train_folder_is_a_wrapper(tmp_path):
    members = {f"train/{'ab'[index % 2]}x/{index}.png": png(index) for index in range(10)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["columns"]["validation"] == {"images": 2, "labels": 2}


def test_pairs_are_matched_by_name(tmp_path):
    members = {f"input/{index}.png": png(index) for index in range(6)}
    members |= {f"target/{index}.webp": saved(picture(pixels(100 + index, channels=3)), "WEBP", lossless=True)
                for index in range(5)}  # fmt: skip
    members |= {"target/7.png": png(7), "notes.txt": b"hello"}
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["layout"] == "paired" and opened.facts["channels"] == 3
    order = {pixels(index).tobytes(): index for index in range(5)}
    assert len(both(opened, "input")) == 5
    for given, wanted in zip(both(opened, "input"), both(opened, "target"), strict=True):
        assert (given == given[0]).all()  # the gray ones came first and were widened
        assert (wanted == pixels(100 + order[given[:1].tobytes()], channels=3)).all()
    assert "target/ has no file of the same name" in reasons(report)["input/5.png"]
    assert "input/ has no file of the same name" in reasons(report)["target/7.png"]
    assert "outside input/ and target/" in reasons(report)["notes.txt"]


def test_pairs_of_different_sizes_are_refused_one_by_one(tmp_path):
    members = {"input/1.png": png(1), "target/1.png": png(2), "input/2.png": png(3), "target/2.png": png(4, 16, 16)}
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    assert len(both(opened, "input")) == 1 and "differ in size" in reasons(report)["input/2.png"]


def test_a_missing_side_of_the_pairs_is_named(tmp_path):
    with pytest.raises(InvalidDataset, match="missing or empty: target/"):
        read(zip_file(tmp_path / "a.zip", {"input/1.png": png(1), "other/1.png": png(2)}), layout="paired")
    with pytest.raises(InvalidDataset, match="missing or empty: b/"):  # a folder alone looks like a wrapper
        read(zip_file(tmp_path / "b.zip", {"A/1.png": png(1), "A/2.png": png(2)}), layout="unpaired")


@pytest.mark.parametrize("folders", [("A", "B", "A", "B"), ("trainA", "trainB", "testA", "testB")])
def test_two_domains_have_lengths_of_their_own(tmp_path, folders):
    members = {f"{folders[2 * (index == 0)]}/{index}.png": png(index) for index in range(10)}
    members |= {f"{folders[1 + 2 * (index == 0)]}/{index}.png": png(100 + index) for index in range(4)}
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["layout"] == "unpaired"
    assert {image.tobytes() for image in both(opened, "a")} == {pixels(index).tobytes() for index in range(10)}
    assert {image.tobytes() for image in both(opened, "b")} == {pixels(100 + index).tobytes() for index in range(4)}
    assert opened.facts["columns"]["validation"] == ({"a": 2, "b": 1} if folders[0] == "A" else {"a": 1, "b": 1})
    assert any("two domains" in warning for warning in report.warnings)


def test_held_out_images_of_equal_names_are_twins(tmp_path):
    members = {f"train/A/{index}.png": png(index) for index in range(4)}
    members |= {f"train/B/x{index}.png": png(100 + index) for index in range(3)}
    held = {f"val/{side}/{index}.png": png(200 + 50 * (side == "B") + index) for side in "AB" for index in (2, 10, 1)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members | held))
    assert opened.facts["twins"]
    for index, name in enumerate((1, 2, 10)):
        assert (opened.validation["a"][index] == pixels(200 + name)).all()
        assert (opened.validation["b"][index] == pixels(250 + name)).all()
    for other in ({"val/B/3.png": png(300)}, {"val/B/3.png": png(301), "val/A/3.png": b"damaged"}):
        opened, _ = read(zip_file(tmp_path / "b.zip", members | held | other))
        assert "twins" not in opened.facts


@pytest.mark.parametrize("sides", [("input", "target"), ("A", "B")])
def test_two_sides_of_the_same_pictures_are_refused(tmp_path, sides):
    members = {f"{side}/{index}.png": png(index) for side in sides for index in range(5)}
    with pytest.raises(InvalidDataset, match="the same images"):
        read(zip_file(tmp_path / "a.zip", members))
    _, report = read(zip_file(tmp_path / "b.zip", members | {f"{sides[1]}/0.png": png(9)}))
    assert any("in both domains" in warning for warning in report.warnings) == (sides[0] == "A")


def mask(seed: int, classes: int = 3) -> np.ndarray:
    return pixels(seed)[0] % classes


@pytest.mark.parametrize("named", [False, True])
def test_masks_are_class_indices(tmp_path, named):
    members = {f"images/{index}.jpg": saved(picture(pixels(index, channels=3)), "JPEG") for index in range(6)}
    members |= {f"masks/{index}.png": codecs.encode_masks(mask(index)[None])[0] for index in range(6)}
    if named:
        members["classes.json"] = json.dumps(["sky", "tree", "road"]).encode()
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["layout"] == "segmentation"
    assert opened.facts["classes"] == (["sky", "tree", "road"] if named else ["0", "1", "2"])
    masks = both(opened, "masks")
    assert masks.dtype == np.uint8 and {m.tobytes() for m in masks} == {mask(i).tobytes() for i in range(6)}
    assert opened.facts["columns"]["train"] == {"images": 5, "masks": 5}


def test_black_and_white_masks_are_two_classes(tmp_path):
    members = {f"images/{index}.png": png(index) for index in range(4)}
    members |= {f"masks/{index}.png": saved(Image.fromarray(mask(index, 2) * 255)) for index in range(4)}
    plain, _ = read(zip_file(tmp_path / "a.zip", members))
    named, _ = read(zip_file(tmp_path / "b.zip", members | {"classes.json": b'{"0": "no", "1": "yes"}'}))
    assert plain.facts["classes"] == ["0", "1"] and named.facts["classes"] == ["no", "yes"]
    for opened in (plain, named):
        assert {m.tobytes() for m in both(opened, "masks")} == {mask(index, 2).tobytes() for index in range(4)}


def test_masks_beyond_the_named_classes_and_void_are_refused(tmp_path):
    members = {f"images/{index}.png": png(index) for index in range(3)}
    members |= {f"masks/{index}.png": saved(Image.fromarray(mask(index))) for index in range(3)}
    void = np.where(mask(9) == 1, 255, mask(9)).astype(np.uint8)
    members |= {"images/9.png": png(9), "masks/9.png": saved(Image.fromarray(void))}
    with pytest.raises(InvalidDataset, match="255 among them") as caught:
        read(zip_file(tmp_path / "a.zip", members))
    assert "classes.json" in caught.value.remedy
    opened, report = read(zip_file(tmp_path / "b.zip", members | {"classes.json": b'["a", "b", "c"]'}))
    assert len(both(opened, "images")) == 3 and "class 255; classes.json names 3" in reasons(report)["images/9.png"]


def test_mask_values_with_gaps_are_classes_named_by_their_values(tmp_path):
    members = {f"images/{index}.png": png(index) for index in range(4)}
    values = np.array([0, 31, 100], np.uint8)
    members |= {f"masks/{index}.png": saved(Image.fromarray(values[mask(index)])) for index in range(4)}
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["classes"] == ["0", "31", "100"]
    assert {m.tobytes() for m in both(opened, "masks")} == {mask(index).tobytes() for index in range(4)}
    assert any("0, 31 and 100" in warning and "classes.json" in warning for warning in report.warnings)


def test_masks_are_resized_without_new_classes(tmp_path):
    members = {f"images/{index}.png": png(index, 40, 60) for index in range(3)}
    blocks = np.kron(np.array([[0, 2, 4], [4, 0, 2]], np.uint8), np.ones((20, 20), np.uint8))
    members |= {f"masks/{index}.png": saved(Image.fromarray(blocks)) for index in range(3)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members), image_size="20x30")
    assert opened.train["masks"].shape[1:] == (20, 30)
    assert opened.facts["classes"] == ["0", "2", "4"]
    assert (opened.train["masks"][0] == blocks[::2, ::2] // 2).all()


def test_attributes_come_from_the_table(tmp_path):
    lines = [["File", "label", "target", "age", "identity", "split", "colour"]]
    lines += [[f"{index}.png", f"k{index % 3}", index / 4, 20 + index, f"p{index // 2}",
               "test" if index > 7 else "train", "red"] for index in range(10)]  # fmt: skip
    members = {f"set/images/{index}.png": png(index) for index in range(10)} | {"set/labels.csv": table(*lines)}
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["layout"] == "attributes" and opened.facts["classes"] == ["k0", "k1", "k2"]
    order = {pixels(index).tobytes(): index for index in range(10)}
    for side, expected in ((opened.train, range(8)), (opened.validation, (8, 9))):
        rows = [order[image.tobytes()] for image in side["images"]]
        assert rows == list(expected)
        assert side["labels"].tolist() == [row % 3 for row in rows]
        assert side["targets"].tolist() == [row / 4 for row in rows]
        assert side["ages"].tolist() == [20 + row for row in rows]
        assert side["identities"].tolist() == [row // 2 for row in rows]
    assert {side.dtype for side in (opened.train["targets"], opened.train["ages"])} == {np.dtype(np.float32)}
    assert any("were not used: " in warning for warning in report.warnings)


def test_lines_without_file_and_files_without_line_are_named(tmp_path):
    lines = [["file", "target"], ["1.png", "1"], ["images/2.png", "2"], ["3.png", "many"], ["4.png", "nan"],
             ["1.png", "3"], ["gone.png", "4"], ["5.png", ""]]  # fmt: skip
    members = {f"images/{index}.png": png(index) for index in range(1, 7)} | {"labels.csv": table(*lines)}
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    assert sorted(both(opened, "targets").tolist()) == [1, 2]
    by_file = reasons(report)
    assert "found 'many'" in by_file["labels.csv line 4"] and "must be a finite" in by_file["labels.csv line 5"]
    assert "1.png has a line already" in by_file["labels.csv line 6"]
    assert "column target is empty" in by_file["labels.csv line 8"]
    assert "does not have it" in by_file["gone.png"] and "no usable line" in by_file["images/6.png"]


@pytest.mark.parametrize("data", [b"", b"file\n1.png\n", b"a,b\n1,2\n", b"\xff\xfe\x00", b'file,label\n"1.png,x\n'])
def test_files_that_are_no_table_are_refused(tmp_path, data):
    with pytest.raises(InvalidDataset, match=r"labels\.csv"):
        read(zip_file(tmp_path / "a.zip", {"images/1.png": png(1), "labels.csv": data}))


def test_mixed_sizes_are_listed_with_the_remedy(tmp_path):
    members = {f"{index}.png": png(index, 10, 12) for index in range(4)} | {"big.png": png(9, 300, 20)}
    file = zip_file(tmp_path / "a.zip", members)
    with pytest.raises(InvalidDataset, match=r"10x12 \(4 images\), 300x20 \(1 images\)") as caught:
        read(file)
    assert "image_size=64" in caught.value.remedy and caught.value.field == "image_size"
    opened, report = read(file, image_size="16x24")
    assert both(opened, "images").shape == (5, 1, 16, 24)
    assert any("5 images had other proportions" in warning for warning in report.warnings)


@pytest.mark.parametrize("size", [(7, 40), (257, 40), (400, 400)])
def test_sizes_out_of_range_ask_for_a_size(tmp_path, size):
    with pytest.raises(InvalidDataset, match=f"8 to 256 .* {size[0]}x{size[1]} "):
        read(zip_file(tmp_path / "a.zip", {"1.png": png(1, *size)}))


@pytest.mark.parametrize("spec", [{"image_size": "7"}, {"image_size": "64x"}, {"image_size": "64x257"}, {"channels": 2},
                                  {"layout": "folders"}, {"image_size": "-8"}])  # fmt: skip
def test_parameters_are_checked(tmp_path, spec):
    with pytest.raises(InvalidDataset) as caught:
        read(zip_file(tmp_path / "a.zip", {"1.png": png(1)}), **spec)
    assert caught.value.field == next(iter(spec))


def test_gray_and_colour_together_are_colour_unless_said_otherwise(tmp_path):
    members = {f"{index}.png": png(index, channels=3 if index == 7 else 1) for index in range(9)}
    file = zip_file(tmp_path / "a.zip", members)
    images = {image.tobytes() for image in both(read(file)[0], "images")}
    widened = {np.repeat(pixels(index), 3, axis=0).tobytes() for index in range(9) if index != 7}
    assert images == widened | {pixels(7, channels=3).tobytes()}
    gray = both(read(file, channels="1")[0], "images")
    assert gray.shape == (9, 1, 12, 12)


def test_the_split_keeps_copies_together_and_repeats_itself(tmp_path):
    members = {f"{index:03}.png": png(index % 40) for index in range(120)}
    first, report = read(zip_file(tmp_path / "a.zip", members))
    sides = [{image.tobytes() for image in side["images"]} for side in (first.train, first.validation)]
    assert sides[0].isdisjoint(sides[1]) and len(first.validation["images"]) == 24
    assert any("80 images are exact copies" in warning for warning in report.warnings)
    again, _ = read(zip_file(tmp_path / "b.zip", dict(reversed(members.items()))))
    assert again.digest == first.digest
    renamed, _ = read(zip_file(tmp_path / "c.zip", {f"x/y/{name}": data for name, data in members.items()}))
    assert renamed.digest == first.digest


def test_validation_copies_of_training_images_are_left_out(tmp_path):
    members = {f"train/{index}.png": png(index) for index in range(4)} | {"val/1.png": png(1), "val/9.png": png(9)}
    opened, report = read(zip_file(tmp_path / "a.zip", members), layout="plain")
    assert len(opened.train["images"]) == 4 and (opened.validation["images"] == pixels(9)).all()
    assert any("1 validation images were removed" in warning for warning in report.warnings)


@pytest.mark.parametrize("count", [1, 3])
def test_without_different_images_there_is_no_validation(tmp_path, count):
    opened, report = read(zip_file(tmp_path / "a.zip", {f"{index}.png": png(1) for index in range(count)}))
    assert opened.facts["columns"] == {"train": {"images": count}, "validation": {}} and opened.validation == {}
    assert any("too few different" in warning for warning in report.warnings)


def test_the_doctor_sees_what_is_wrong(tmp_path):
    constant = saved(Image.new("RGB", (12, 12), "gray"))
    members = {f"ax/{index}.png": saved(picture(pixels(index)).convert("RGB")) for index in range(30)}
    members |= {"bx/1.png": constant, "bx/2.png": saved(picture(pixels(1)).convert("RGB"))}
    _, report = read(zip_file(tmp_path / "a.zip", members))
    text = " ".join(report.warnings)
    for sign in ("1 images have a single colour", "channels=1", "1 images are exact copies", "'ax' has 30 images",
                 "1 images occur under more than one class"):  # fmt: skip
        assert sign in text
    dark = {f"{index}.png": saved(Image.fromarray(pixels(index)[0] % 2)) for index in range(25)}
    assert "not scaled" in " ".join(read(zip_file(tmp_path / "b.zip", dark))[1].warnings)


def test_thumbnails_and_pages_show_the_images(tmp_path):
    from app.core.errors import InvalidRequest
    from app.core.store import blobs
    from workers.data import images_page

    members = {f"{'ab'[index % 2]}x/{index}.png": png(index, 100, 200) for index in range(70)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    sheet = codecs.decode(blobs.get(f"datasets/{opened.digest}/thumbnails.png"))
    assert sheet.shape == (1, 8 * 34 - 2, 8 * 66 - 2)
    images, labels = images_page(opened.digest, "train", None, 3, 5)
    assert [codecs.decode(data).tobytes() for data in images] == [row.tobytes() for row in opened.train["images"][3:8]]
    assert labels == opened.train["labels"][3:8].tolist()
    assert images_page(opened.digest, "train", "images", 1000, 5) == ([], [])
    for wrong in ({"split": "test"}, {"column": "facts"}):
        with pytest.raises(InvalidRequest):
            images_page(opened.digest, **wrong)


class Unmarked(zipfile.ZipInfo):
    """A member whose name is written as it is, without the flag of UTF-8."""

    raw: bytes

    def _encodeFilenameFlags(self):
        return self.raw, self.flag_bits & ~0x800


def unmarked(path, encoding: str, *names: str):
    with zipfile.ZipFile(path, "w") as archive:
        for index, name in enumerate(names):
            info = Unmarked(f"{index}")
            info.raw = name.encode(encoding)
            archive.writestr(info, png(index))
    return path


CLASSES = ["Bär", "Hündin"]


@pytest.mark.parametrize(
    ("encoding", "option"), [("utf-8", None), ("cp437", None), ("cp1252", "cp1252"), ("cp850", "cp850")]
)
def test_names_without_the_flag_of_utf_8(tmp_path, encoding, option):
    names = [f"{CLASSES[index % 2]}/{index}.png" for index in range(12)]
    opened, report = read(unmarked(tmp_path / "a.zip", encoding, *names), names=option)
    assert opened.facts["classes"] == CLASSES
    assert any("names=" in warning for warning in report.warnings) == (encoding == "cp437")


def test_names_in_japanese(tmp_path):
    names = [f"{['犬', '猫'][index % 2]}/{index}.png" for index in range(12)]
    opened, _ = read(unmarked(tmp_path / "a.zip", "cp932", *names), names="cp932")
    assert opened.facts["classes"] == ["犬", "猫"]


def test_an_unknown_code_page_is_refused(tmp_path):
    with pytest.raises(InvalidDataset, match="names must be one of cp437") as refused:
        read(zip_file(tmp_path / "a.zip", {f"{n}.png": png(n) for n in range(4)}), names="rot13")
    assert refused.value.field == "names"


@pytest.mark.parametrize("layout", ["labelled", "segmentation", "attributes", "detection"])
def test_images_of_one_group_are_on_one_side_of_the_split(tmp_path, layout):
    """Eight variants of each of five objects: without groups they fall on both sides."""
    group_of = {number: f"object {number // 8}" for number in range(40)}
    names = {number: f"{number}.png" for number in range(40)}
    if layout == "labelled":
        names = {number: f"{'even' if number % 2 == 0 else 'odd'}/{number}.png" for number in range(40)}
    folder = "images/" if layout == "segmentation" else ""
    members = {folder + name: png(number) for number, name in names.items()}
    lines = [[name, group_of[number]] for number, name in names.items()]
    if layout == "segmentation":
        members |= {f"masks/{name}": saved(picture(pixels(number) % 2)) for number, name in names.items()}
    if layout == "attributes":
        members["labels.csv"] = table(["file", "target", "group"], *([name, 1.5, group] for name, group in lines))
    elif layout == "detection":
        members["boxes.csv"] = table(
            ["file", "label", "left", "top", "right", "bottom", "group"],
            *([name, "x", 0, 0, 4, 4, group] for name, group in lines),
        )
    else:
        members["groups.csv"] = table(["file", "group"], *lines)
    opened, report = read(zip_file(tmp_path / "a.zip", members))
    owner = {pixels(number).tobytes(): group for number, group in group_of.items()}
    sides = [{owner[image.tobytes()] for image in side["images"]} for side in (opened.train, opened.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert sum(len(side["images"]) for side in (opened.train, opened.validation)) == 40
    assert report.refused_count == 0 and report.warnings == []


def test_groups_of_files_that_are_not_there_are_told(tmp_path):
    members = {f"{index}.png": png(index) for index in range(10)}
    members["groups.csv"] = table(["file", "group"], ["0.png", "a"], ["missing.png", "a"], ["1.png", "a"])
    assert "missing" in " ".join(read(zip_file(tmp_path / "a.zip", members))[1].warnings)
