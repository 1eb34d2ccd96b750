"""Ages and identities of an upload, and labels of two domains: what is kept, what is said, what is refused."""

import numpy as np
import pytest

from app.core.errors import InvalidDataset
from tests.workers.data.test_zip import table
from tests.workers.pictures import npz_file, pixels, png, read, zip_file

pytestmark = pytest.mark.usefixtures("storage")


def upload(tmp_path, lines: list[list], count: int = 10):
    members = {f"{index}.png": png(index) for index in range(count)} | {"labels.csv": table(*lines)}
    return read(zip_file(tmp_path / "a.zip", members))


def people(ages, identities) -> list[list]:
    lines = enumerate(zip(ages, identities, strict=True))
    return [["file", "age", "identity"], *([f"{number}.png", *line] for number, line in lines)]


def test_the_spread_of_ages_and_the_count_of_people_are_facts(tmp_path):
    opened, report = upload(tmp_path, people(range(20, 30), "aabbccddee"))
    assert opened.facts["ages"] == sorted(opened.train["ages"].tolist())
    assert opened.facts["identities"] == len(set(opened.train["identities"].tolist()))
    assert not any("identity" in warning or "age" in warning.split() for warning in report.warnings)


@pytest.mark.parametrize(
    ("ages", "identities", "sentence"),
    [([30] * 10, "aabbccddee", "have the age 30"), (range(10), "abcdefghij", "its own identity"),
     (range(10), "a" * 10, "the same identity")],
)  # fmt: skip
def test_constant_ages_and_useless_identities_cause_warnings(tmp_path, ages, identities, sentence):
    _, report = upload(tmp_path, people(ages, identities))
    assert any(sentence in warning for warning in report.warnings)


def test_lines_with_impossible_ages_are_refused_by_number(tmp_path):
    opened, report = upload(tmp_path, people([20, -1, "old", "nan", 1e31, *range(21, 26)], "aabbccddee"))
    assert sum(len(side["ages"]) for side in (opened.train, opened.validation)) == 6
    found = {each["file"]: each["reason"] for each in report.refused}
    assert "negative" in found["labels.csv line 3"] and "must be a number; found 'old'" in found["labels.csv line 4"]
    assert "finite" in found["labels.csv line 5"] and "finite" in found["labels.csv line 6"]


def test_unknown_columns_are_named_and_at_least_one_known_is_required(tmp_path):
    _, report = upload(tmp_path, [["file", "age", "years old"], *([f"{n}.png", n, 1] for n in range(10))])
    assert any("not used: years old" in warning for warning in report.warnings)
    with pytest.raises(InvalidDataset, match="its columns are ages, name") as caught:
        upload(tmp_path, [["ages", "name"], [1, "a"]])
    assert caught.value.field == "labels.csv"


def test_negative_ages_of_an_npz_are_refused(tmp_path):
    images = np.stack([np.full((8, 8), 10 * n, np.uint8) for n in range(10)])
    with pytest.raises(InvalidDataset, match="ages holds a negative"):
        read(npz_file(tmp_path / "a.npz", images=images, ages=np.arange(10) - 1.0))


def test_folders_that_both_domains_have_are_their_classes(tmp_path):
    members = {f"A/{'xy'[n % 2]}/{n}.png": png(n) for n in range(10)}
    members |= {f"B/{'xy'[n % 2]}/{n}.png": png(50 + n) for n in range(6)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members))
    assert opened.facts["layout"] == "unpaired" and opened.facts["classes"] == ["x", "y"]
    wanted = {pixels(n).tobytes(): n % 2 for n in range(10)} | {pixels(50 + n).tobytes(): n % 2 for n in range(6)}
    for side in (opened.train, opened.validation):
        for domain in "ab":
            labels = [wanted[image.tobytes()] for image in side[domain]]
            assert side[f"{domain}_labels"].tolist() == labels


@pytest.mark.parametrize("other", ["x", "z", "x/1"])
def test_other_folders_of_two_domains_are_mere_folders(tmp_path, other):
    members = {f"A/{'xy'[n % 2]}/{n}.png": png(n) for n in range(6)}
    opened, _ = read(zip_file(tmp_path / "a.zip", members | {f"B/{other}/{n}.png": png(50 + n) for n in range(6)}))
    assert opened.facts["classes"] is None and set(opened.train) == {"a", "b"}


@pytest.mark.parametrize("domain", ["a", "b"])
def test_one_of_two_domains_alone_may_have_labels(tmp_path, domain):
    images = {"a": np.stack([pixels(n) for n in range(10)]), "b": np.stack([pixels(50 + n) for n in range(8)])}
    labels = np.arange(len(images[domain])) % 2
    members = {
        f"{side.upper()}/{'xy'[labels[n]] + '/' if side == domain else ''}{n}.png": png(n + 50 * (side == "b"))
        for side in "ab"
        for n in range(len(images[side]))
    }
    files = (
        zip_file(tmp_path / "a.zip", members),
        npz_file(tmp_path / "a.npz", **images, **{f"{domain}_labels": labels}),
    )
    known = {image.tobytes(): label for image, label in zip(images[domain], labels, strict=True)}
    for file, classes in zip(files, (["x", "y"], ["0", "1"]), strict=True):
        opened, report = read(file)
        assert opened.facts["classes"] == classes
        assert sum("read as classes" in warning for warning in report.warnings) == (file.suffix == ".zip")
        for side in (opened.train, opened.validation):
            assert set(side) == {"a", "b", f"{domain}_labels"}
            assert side[f"{domain}_labels"].tolist() == [known[image.tobytes()] for image in side[domain]]


def test_arrays_that_the_layout_does_not_read_are_named(tmp_path):
    images = np.stack([pixels(n) for n in range(10)])
    _, report = read(
        npz_file(tmp_path / "a.npz", images=images, labels=np.arange(10) % 2, extra=images), layout="plain"
    )
    assert any("labels" in warning and "plain" in warning for warning in report.warnings)
    assert any("extra" in warning for warning in report.warnings)


def test_the_labels_of_two_domains_in_an_npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (16, 8, 8), np.uint8)
    arrays = {"a": images[:10], "b": images[10:], "a_labels": np.arange(10) % 3, "b_labels": np.arange(6) % 3}
    opened, _ = read(npz_file(tmp_path / "a.npz", **arrays))
    assert opened.facts["classes"] == ["0", "1", "2"]
    known = {image.tobytes(): n % 3 for part in (images[:10], images[10:]) for n, image in enumerate(part)}
    for side in (opened.train, opened.validation):
        for domain in "ab":
            assert side[f"{domain}_labels"].tolist() == [known[image.tobytes()] for image in side[domain]]
    with pytest.raises(InvalidDataset, match="a 10, a_labels 4"):
        read(npz_file(tmp_path / "b.npz", **arrays | {"a_labels": np.zeros(4, int)}))


def test_a_table_of_another_layout_causes_a_warning(tmp_path):
    members = {f"{index}.png": png(index) for index in range(10)}
    members["labels.csv"] = table(*people(range(20, 30), "aabbccddee"))
    opened, report = read(zip_file(tmp_path / "a.zip", members), layout="plain")
    assert set(opened.train) == {"images"}
    assert any("labels.csv was not read" in warning and "attributes" in warning for warning in report.warnings)
