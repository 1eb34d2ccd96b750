"""What is said of the built-in datasets is what their loaders give, whatever they are drawn from."""

from collections import defaultdict
from itertools import islice

import numpy as np
import pytest

from app.core.catalog import builtins as facts
from app.core.errors import InvalidRequest, NotFound
from tests.workers.imported import imported, sampled
from workers import builtins
from workers.builtins import digits, examples, fontdigits, glyphs, openmoji, photos
from workers.data.builtin_rows import BuiltinSource
from workers.data.rows import IMAGE_COLUMNS, Size

COLUMNS = {"paired": {"input", "target"}, "unpaired": {"a", "b"}}
WHOLE = (
    "mnist5k",
    "digits8",
    "openmoji-people",
    "openmoji-faces",
    "openmoji-animals",
    "icons-outline2fill",
    "glyphs",
    "glyphs-italic",
    "photo-patches",
    "faces-lfw100",
)


def every(name: str, *size: int) -> list[builtins.Example]:
    return [example for example in builtins.LOADERS[name](*size).each if example]


def test_every_built_in_has_facts_and_a_loader_and_is_here():
    assert builtins.LOADERS.keys() == facts.BUILTINS.keys()
    for name, about in facts.BUILTINS.items():
        assert about.id == name and about.installed and about.title
        assert 0 < len(about.licence) <= 255 and 0 < len(about.attribution) <= 1000  # what the table holds


@pytest.mark.parametrize("name", builtins.LOADERS)
@pytest.mark.parametrize("chosen", [False, True], ids=["default", "chosen"])
def test_facts_and_pictures_agree(name, chosen, monkeypatch):
    sampled(monkeypatch, step=250)
    about = facts.BUILTINS[name]
    side = 20 if chosen and about.sizes else about.height
    found = list(islice(every(name, side) if about.sizes else every(name), 3000))
    assert {column for example in found for column in example.images} == COLUMNS.get(about.layout, {"images"})
    for example in found:
        for picture in example.images.values():
            assert picture.dtype == np.uint8 and picture.shape == (about.channels, side, side)
            assert picture.flags.c_contiguous
        assert (example.label is not None) == bool(about.classes and about.layout not in ("segmentation", "detection"))
        assert (example.mask is not None) == (about.layout == "segmentation")
        assert (example.boxes is not None) == (about.layout == "detection")
        assert bool(example.values) == (about.layout == "attributes")
    levels = np.concatenate([picture.ravel() for example in found[::10] for picture in example.images.values()])
    assert np.ptp(levels) > 200


@pytest.mark.parametrize("name", WHOLE)
def test_counts_and_classes_are_as_stated(name):
    about = facts.BUILTINS[name]
    found = every(name, about.height) if about.sizes else every(name)
    assert len(found) == about.count
    if about.classes:
        assert sorted({example.label for example in found}) == list(range(len(about.classes)))


@pytest.mark.parametrize("name", builtins.LOADERS)
def test_an_import_keeps_groups_whole_and_every_picture(name, storage, monkeypatch):
    sampled(monkeypatch, step=160)
    source, data, report = imported(name)
    left = data.facts["columns"]["train"], data.facts["columns"]["validation"]
    column = next(name for name in left[0] if name in IMAGE_COLUMNS)
    assert left[1][column] and report.refused_count == 0 and not [w for w in report.warnings if "left out" in w]
    for side in (data.train, data.validation):
        assert all(len(rows) == left[side is data.validation][name] for name, rows in side.items())
    pictures = {picture.tobytes() for picture in data.train[column]}
    assert not pictures & {picture.tobytes() for picture in data.validation[column]}
    assert source.layout == data.facts["layout"] == facts.BUILTINS[name].layout


@pytest.mark.parametrize("name", builtins.LOADERS)
def test_near_copies_are_given_one_side(name, monkeypatch):
    sampled(monkeypatch, step=120)
    about = facts.BUILTINS[name]
    sides = defaultdict(set)
    for example in every(name, about.height) if about.sizes else every(name):
        sides[example.group].add(example.split)
    sides.pop(None, None)
    assert all(len(given) == 1 for given in sides.values())


@pytest.mark.parametrize("name", ["openmoji-line2color", "glyphs-italic", "fontdigits", "photo-patches"])
def test_the_same_is_drawn_every_time(name, monkeypatch):
    sampled(monkeypatch, step=200)
    about = facts.BUILTINS[name]
    first, second = (every(name, 32) if about.sizes else every(name) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name and one.split == other.split
        assert all((picture == other.images[column]).all() for column, picture in one.images.items())


@pytest.mark.parametrize("name", ["openmoji-tone", "openmoji-flat"])
def test_the_count_of_two_domains_is_that_of_the_import(name, storage):
    _, data, _ = imported(name)
    sides = data.facts["columns"].values()
    assert sum(max(side.values()) for side in sides) == facts.BUILTINS[name].count


def test_the_digits_are_the_known_ones():
    images, labels = digits.mnist_arrays()
    assert np.bincount(labels).tolist() == [500] * 10
    assert abs(images.mean() / 255 - 0.1307) < 0.005  # the mean of all of MNIST
    assert [example.label for example in islice(digits.digits8().each, 10)] == list(range(10))


@pytest.mark.parametrize("name, package", [(n, p) for n, about in facts.BUILTINS.items() for p in about.packages])
def test_a_missing_package_is_named_before_anything_is_drawn(name, package, monkeypatch):
    real = examples.find_spec
    for module in (examples, facts):
        monkeypatch.setattr(module, "find_spec", lambda wanted: None if wanted == package else real(wanted))
    with pytest.raises(NotFound, match=package) as caught:
        BuiltinSource(name)
    assert 'pip install "anamorph[data]"' in caught.value.remedy
    assert not facts.BUILTINS[name].installed


@pytest.mark.parametrize("name, size", [("openmoji", (16, 32)), ("openmoji", (257, 257)), ("mnist5k", (32, 32))])
def test_a_size_that_cannot_be_drawn_is_refused(name, size):
    with pytest.raises(InvalidRequest, match=f"of {name} (are|must be)") as caught:
        BuiltinSource(name, Size(*size))
    assert caught.value.field == "image_size"


def test_letters_are_whole_and_stand_on_one_line():
    """No ink at the border, and the flat-footed letters end in the same row."""
    for _, file in glyphs.faces():
        rows = []
        for letter in facts.LETTERS:
            picture = glyphs.draw(file, letter, 32)[0]
            assert not np.concatenate([picture[[0, -1]].ravel(), picture[:, [0, -1]].ravel()]).any(), (file, letter)
            if letter in "EFHIKLMT":
                rows.append(np.flatnonzero(picture.max(1) > 127)[-1])
        assert max(rows) - min(rows) <= 1, file


def resemblance(file: str) -> float:
    """Share of letters that resemble their own kind in other faces more than any other letter."""

    def shapes(file: str) -> np.ndarray:
        flat = np.stack([glyphs.draw(file, letter, 32).ravel() / 255 for letter in "aegkrs2357"])
        return flat - flat.mean(1, keepdims=True)

    means = np.mean([shapes(other) for _, other in glyphs.faces() if other != file], axis=0)
    mine = shapes(file)
    alike = mine @ means.T / np.linalg.norm(mine, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    return float((alike.argmax(1) == np.arange(len(mine))).mean())


def test_letters_are_what_they_are_called():
    assert min(resemblance(file) for _, file in glyphs.faces()) >= 0.5
    assert resemblance("cmsy10") <= 0.2  # a font of symbols that claims to have letters


def test_a_real_digit_is_already_in_place():
    """What brings printed digits into MNIST's form leaves MNIST's own exactly where they are."""
    for digit in digits.mnist_arrays()[0][::25, 0]:
        assert (fontdigits.normalised(digit) == digit).all()


def test_printed_digits_fill_the_box_around_their_middle():
    for example in islice(fontdigits.fontdigits().each, 0, 400, 13):
        ink = example.images["images"][0].astype(float)
        rows, columns = np.nonzero(ink)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        middle = np.array([ink.sum(1) @ np.arange(28), ink.sum(0) @ np.arange(28)]) / ink.sum()
        assert np.abs(middle - 14).max() <= 0.51


def test_simulated_and_real_digits_split_as_they_do_alone(storage, monkeypatch):
    """So what is held out of mnist5k was not seen by a refiner either."""
    sampled(monkeypatch)
    both, printed, real = (imported(name)[1] for name in ("fontdigits-mnist", "fontdigits", "mnist5k"))
    for mine, theirs in (
        (both.validation["a"], printed.validation["images"]),
        (both.validation["b"], real.validation["images"]),
    ):
        assert {row.tobytes() for row in mine} == {row.tobytes() for row in theirs}


def test_pieces_of_photographs_come_from_blocks_that_do_not_touch():
    for package, names in photos.PHOTOS.items():
        for name in names.split():
            file = examples.file_of(package, name)
            _, height, width = photos._open(file).shape
            corners = list(photos._corners(file).values())
            assert corners and len(set(corners)) == len(corners)
            for top, left in corners:
                assert 0 <= top <= height - photos.BLOCK and 0 <= left <= width - photos.BLOCK
                assert (top - corners[0][0]) % photos.BLOCK == (left - corners[0][1]) % photos.BLOCK == 0


def test_an_emoji_is_drawn_at_its_size_on_white(monkeypatch):
    sampled(monkeypatch, step=400)
    for size in (32, 64):
        for example in every("openmoji", size):
            file = next(file for file in openmoji.files() if file.stem == example.name)
            assert (openmoji.flat(file.read_text(), size) == example.images["images"]).all()
    assert (openmoji.flat('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>', 8) == 255).all()
