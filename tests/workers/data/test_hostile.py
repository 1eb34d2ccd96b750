"""Archives that want harm: bombs, slips, nests, lies and thousands of damaged ones."""

import random
import stat
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest

from app.core.errors import InvalidDataset
from app.core.settings import settings
from tests.workers.codecs.test_codecs import raw_png
from tests.workers.codecs.test_fuzz import damaged
from tests.workers.pictures import npz_file, pixels, png, read, zip_file
from workers import codecs

pytestmark = pytest.mark.usefixtures("storage")


def reasons(report) -> dict[str, str]:
    return {entry["file"]: entry["reason"] for entry in report.refused}


def test_names_that_leave_the_archive_are_reported_and_harm_nothing(tmp_path):
    slips = ["../../etc/evil.png", "/etc/evil.png", "C:/evil.png", "..\\evil.png", "a/../../evil.png"]
    file = zip_file(tmp_path / "a.zip", {"1.png": png(1), "2.png": png(2)} | dict.fromkeys(slips, png(3)))
    opened, report = read(file)
    assert opened.facts["columns"]["train"]["images"] == 1
    assert len(report.refused) == 5 and set(reasons(report).values()) == {"The path points outside the archive."}
    assert not list(tmp_path.parent.rglob("evil.png"))


def test_broken_members_are_refused_one_by_one(tmp_path):
    members = {f"{index}.png": png(index) for index in range(5)}
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    members |= {"cut.png": png(9)[:60], "moving.gif": b"GIF89a" + bytes(30), "empty.png": b""}
    file = zip_file(tmp_path / "a.zip", members | {"nested.zip": b"PK\x03\x04" + bytes(30)})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("odd.png", png(11), zipfile.ZIP_LZMA)
    opened, report = read(file)
    found = reasons(report)
    assert opened.facts["columns"] == {"train": {"images": 4}, "validation": {"images": 1}}
    for name, reason in {"cut.png": "damaged or cut short", "moving.gif": "a GIF", "nested.zip": "a zip archive",
                         "empty.png": "empty", "link.png": "symbolic link", "odd.png": "deflate"}.items():  # fmt: skip
        assert reason in found.pop(name)
    assert not found and report.refused_count == 6


def test_an_encrypted_archive_has_no_usable_image(tmp_path):
    file = zip_file(tmp_path / "a.zip", {"1.png": png(1)})
    data = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    file.write_bytes(data)
    with pytest.raises(InvalidDataset, match=r"no usable image\. 1 files were refused.*encrypted") as caught:
        read(file)
    assert caught.value.problem()["refused"] == [{"file": "1.png", "reason": "The file is encrypted."}]


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x05\x06" + bytes(18), b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path, data):
    for name in ("a.zip", "a.npz"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidDataset):
            read(tmp_path / name)


def test_the_report_is_capped_and_counts_on(tmp_path):
    members = {f"{index}.png": b"no" for index in range(500)} | {"ok.png": png(1), "\x1b[2J.png": b"no"}
    _, report = read(zip_file(tmp_path / "a.zip", members))
    assert len(report.refused) == 200 and report.refused_count == 501
    assert all(entry["file"].isprintable() for entry in report.refused)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + bytes(400)
    _, report = read(zip_file(tmp_path / "a.zip", {"1.png": png(1), "bomb.png": bomb}))
    assert "20000 x 20000 pixels" in reasons(report)["bomb.png"]


def test_a_zip_bomb_is_stopped_while_it_is_read(tmp_path):
    bomb = {f"{index}.png": bytes(10 << 20) for index in range(10)}
    started = time.perf_counter()
    with pytest.raises(InvalidDataset, match="100 times its size"):
        read(zip_file(tmp_path / "a.zip", {"0.png": png(1)} | bomb))
    one, report = read(zip_file(tmp_path / "b.zip", {"0.png": png(1), "1.png": bytes(30 << 20)}))
    assert one.facts["columns"]["train"] == {"images": 1} and "larger than" in reasons(report)["1.png"]
    assert time.perf_counter() - started < 20


def test_an_npz_bomb_is_stopped(tmp_path):
    with pytest.raises(InvalidDataset, match="100 times its size"):
        read(npz_file(tmp_path / "a.npz", compress=True, images=np.zeros((1500, 256, 256), np.uint8)))


def test_small_blank_pictures_compress_well_and_are_no_bomb(tmp_path):
    blank = np.zeros((2000, 28, 28), np.uint8)
    blank[:, 5, 5] = np.arange(2000) % 251
    opened, _ = read(npz_file(tmp_path / "a.npz", compress=True, images=blank))
    assert opened.facts["height"] == 28


def test_limits_of_the_settings_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("ANAMORPH_MAX_ARCHIVE_MEMBERS", "10")
    monkeypatch.setenv("ANAMORPH_MAX_ARCHIVE_BYTES", "3000")
    settings.cache_clear()
    with pytest.raises(InvalidDataset, match="11 entries; at most 10"):
        read(zip_file(tmp_path / "a.zip", {f"{index}.png": png(index) for index in range(11)}))
    with pytest.raises(InvalidDataset, match="table of contents"):
        read(zip_file(tmp_path / "b.zip", {f"{index}.png": b"" for index in range(50)}))
    with pytest.raises(InvalidDataset, match="unpacks to more than 3000 bytes"):
        read(zip_file(tmp_path / "c.zip", {f"{index}.png": png(index, 30, 30) for index in range(9)}))
    with pytest.raises(InvalidDataset, match="images take more than 3000 bytes at 64x64"):
        read(zip_file(tmp_path / "d.zip", {"1.png": png(1), "2.png": png(2)}), image_size=64)


def test_an_array_that_claims_more_than_it_has_is_refused(tmp_path):
    file = npz_file(tmp_path / "a.npz", images=np.zeros((10, 10, 10), np.uint8))
    with zipfile.ZipFile(file) as archive:
        array = archive.read("images.npy")
    for claim in (b"(9999999999, 8, 8)", b"(10, 8000, 800)", b"(10, 10, 11)", b"(10, -10, 10)", b"(2**62, 8, 8)"):
        zip_file(file, {"images.npy": _claim(array, claim)})
        with pytest.raises(InvalidDataset):
            read(file)


def _claim(array: bytes, shape: bytes) -> bytes:
    """The npy file with another shape in its header, which keeps its length."""
    head = array[10 : 10 + struct.unpack("<H", array[8:10])[0]]
    lie = head.replace(b"(10, 10, 10)", shape).rstrip().ljust(len(head) - 1) + b"\n"
    return array[:10] + lie + array[10 + len(head) :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "npz", "npz-compressed"])
def test_damaged_archives_are_refused_or_read(tmp_path, kind):
    rng = random.Random(kind)
    if kind == "zip":
        members = {f"{'ab'[index % 2]}x/{index}.png": png(index, 8, 8) for index in range(4)}
        file = zip_file(tmp_path / "a.zip", members | {"labels.csv": b"file,label\nax/0.png,1\nbx/1.png,2\n"})
    else:
        images = np.stack([pixels(index, 8, 8)[0] for index in range(4)])
        file = npz_file(tmp_path / "a.npz", kind != "npz", images=images, labels=np.arange(4))
    original = file.read_bytes()
    read_some = 0
    for _ in range(400):
        file.write_bytes(damaged(original, rng))
        started = time.perf_counter()
        try:
            read(file)
            read_some += 1
        except InvalidDataset as error:
            assert error.detail.endswith((".", "}"))
        assert time.perf_counter() - started < 5
    assert 0 < read_some < 400


def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    """By what they cost: sixteen bits count several times, and the limit holds for all images together."""
    decoded = []
    monkeypatch.setattr("workers.codecs.decode", lambda *arguments, **options: decoded.append(1) or pixels(1))
    deep = raw_png(1000, 1000, 16, 6, b"")
    file = zip_file(tmp_path / "a.zip", {f"{index}.png": deep for index in range(20)})
    limit = 5 * codecs.read_header(deep).cost
    assert limit > 5 * 1000 * 1000
    monkeypatch.setattr("workers.data.zip_rows.MAX_PIXELS", limit)
    with pytest.raises(InvalidDataset, match=f"more than {limit:,} pixels"):
        read(file)
    assert len(decoded) == 5
