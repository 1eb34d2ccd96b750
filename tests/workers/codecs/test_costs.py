"""What decoding costs is known from headers, hostile files included, and costs no more than that."""

import base64
import io
import random
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from app.core import images
from app.core.errors import InvalidImage, TooLarge
from app.core.images import cost_of, from_base64, read_header, read_headers
from app.core.settings import settings
from tests.workers.codecs.test_codecs import chunk, raw_png
from tests.workers.codecs.test_fuzz import damaged, originals
from tests.workers.pictures import picture, pixels, png, saved
from workers import codecs

MANY = 4_000_000
PLAIN = Image.new("RGB", (4000, 4000), (9, 9, 9))


def solid_webp(side: int = 4000) -> bytes:
    return saved(PLAIN.crop((0, 0, side, side)), "WEBP", lossless=True, method=0)


def deep_png(side: int) -> bytes:
    """The beginning of a PNG of 16 bits with transparency: all that is read before it is decoded."""
    return raw_png(side, side, 16, 6, b"")


def with_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan."""
    data = saved(PLAIN, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - data.count(b"\xff\xda")) + data[-2:]


HOSTILE = {
    "256 solid WebP": lambda: [solid_webp()] * 256,
    "190 deep PNG": lambda: [deep_png(4000)] * 190,
    "4 JPEG of 95 scans": lambda: [with_scans(95)] * 4,
    "256 photos of 9 megapixels": lambda: [raw_png(3000, 3000, 8, 2, b"")] * 256,
}


@pytest.mark.parametrize("recipe", HOSTILE)
def test_small_requests_with_large_work_are_refused_by_their_headers(recipe):
    with pytest.raises(TooLarge) as caught:
        read_headers(HOSTILE[recipe](), settings().call_pixels)
    assert f"{settings().call_pixels:,}" in caught.value.detail
    assert "respond-async" in caught.value.remedy


def test_what_people_send_fits_a_call():
    noisy = pixels(1, 256, 256, 3)
    for files in (
        [png(1, 28, 28)] * 256,
        [saved(picture(noisy))] * 256,
        [saved(picture(noisy).convert("RGBA"), "PNG")] * 256,
        [saved(Image.effect_noise((4000, 4000), 60).convert("RGB"), "JPEG", quality=90)],
        [solid_webp()],
        [deep_png(4000)],
    ):
        read_headers(files, settings().call_pixels)


def test_sixteen_bits_transparency_scans_and_detail_cost_more():
    side = 2000
    plain = read_header(raw_png(side, side, 8, 2, b"")).cost
    assert read_header(raw_png(side, side, 16, 6, b"")).cost > 5 * plain
    assert read_header(with_scans(95)).cost > 3 * read_header(saved(PLAIN, "JPEG", progressive=True)).cost
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(b"y"))
    assert read_header(raw_png(side, side, 8, 2, b"", profile)).cost > 2 * plain
    assert read_header(png(1, 300, 300, 3)).cost > read_header(raw_png(300, 300, 8, 2, b"")).cost
    clear = saved(PLAIN.crop((0, 0, 500, 500)).convert("RGBA"), "WEBP", exact=True)
    assert read_header(solid_webp(500)).cost <= read_header(clear).cost
    photo = read_header(saved(PLAIN, "JPEG"))
    assert cost_of(photo, 100) < photo.cost / 3 and cost_of(photo, 3000) == photo.cost == cost_of(photo, None)


@pytest.mark.parametrize("kind", ["png", "gray", "rgba", "deep", "jpeg", "progressive", "webp", "lossless"])
def test_the_cost_is_about_the_time_it_takes(kind):
    """Within a factor of twelve on any machine: what matters are the factors of hundreds."""
    smooth = np.kron(pixels(1, 100, 100, 3), np.ones((1, 10, 10), np.uint8))
    noise = np.random.default_rng(1).integers(0, 24, smooth.shape, dtype=np.uint8)
    image = picture((smooth // 2 + noise).astype(np.uint8))
    data = {
        "png": lambda: saved(image, compress_level=1),
        "gray": lambda: saved(image.convert("L"), compress_level=1),
        "rgba": lambda: saved(image.convert("RGBA"), compress_level=1),
        "deep": lambda: raw_png(1000, 1000, 16, 6, (b"\4" + bytes(8000)) * 1000),
        "jpeg": lambda: saved(image, "JPEG"),
        "progressive": lambda: saved(image, "JPEG", progressive=True),
        "webp": lambda: saved(image, "WEBP", method=0),
        "lossless": lambda: saved(image, "WEBP", lossless=True, method=0),
    }[kind]()
    header = read_header(data)
    times = []
    for _ in range(3):
        start = time.process_time()
        codecs.decode(data)
        times.append(time.process_time() - start)
    predicted = header.cost * images.PIXEL_NANOSECONDS * 1e-9
    assert predicted / 12 < min(times) < predicted * 12


@pytest.mark.parametrize("filler", [b"\xff\xfe\0\2", b"\xff\xe1\0\2", b"\xff\x01"])
def test_a_jpeg_of_empty_markers_is_refused_after_a_thousand(filler, monkeypatch):
    data = saved(picture(pixels(1, 16, 16, 3)), "JPEG")
    looked_at = []
    monkeypatch.setattr(images, "FILL", Counting(images.FILL, looked_at))
    with pytest.raises(InvalidImage, match="markers"):
        codecs.decode(data[:2] + filler * MANY + data[2:])
    assert len(looked_at) <= images.MAX_JPEG_SEGMENTS


class Counting:
    """A pattern that notes each of its searches."""

    def __init__(self, pattern, calls: list):
        self.pattern, self.calls = pattern, calls

    def match(self, *arguments):
        self.calls.append(1)
        return self.pattern.match(*arguments)


def test_fill_bytes_of_a_jpeg_are_passed_over_at_once():
    data = saved(picture(pixels(1, 16, 16, 3)), "JPEG")
    filled = data[:2] + b"\xff" * MANY + data[2:]
    assert (codecs.decode(filled) == codecs.decode(data)).all()


@pytest.mark.parametrize("name", ["PNG", "WebP"])
def test_files_of_empty_chunks_are_refused(name):
    if name == "PNG":
        data = png(1)
        flood = data[:33] + chunk(b"IDAT", b"") * (images.MAX_CHUNKS + 1) + data[33:]
    else:
        data = saved(picture(pixels(1, 8, 8, 3)), "WEBP", exif=b"Exif\0\0x")
        flood = data[:30] + struct.pack("<4sI", b"abcd", 0) * (images.MAX_CHUNKS + 1) + data[30:]
    with pytest.raises(InvalidImage, match="chunks"):
        read_header(flood)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
def test_exif_data_do_not_grow_in_memory(format):
    """Thousands of entries that each name the whole block: Pillow would copy it for each."""
    size, entries = 60_000, 4_900
    head = b"MM\0*" + struct.pack(">IH", 8, entries)
    table = b"".join(struct.pack(">HHII", tag, 2, size, 8) for tag in range(entries - 1))
    exif = b"Exif\0\0" + (head + table + struct.pack(">HHIHH", 0x0112, 3, 1, 3, 0)).ljust(size, b"\0")
    array = pixels(1, 8, 8, 3)
    upright = saved(picture(array), format)
    turned = saved(picture(array), format, exif=exif)
    tracemalloc.start()
    try:
        image = codecs.decode(turned)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(exif)
    assert (image == codecs.decode(upright)[:, ::-1, ::-1]).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [name for name in originals() if name != "npy"])
def test_damaged_headers_cost_what_they_say_or_are_refused(kind):
    rng, original = random.Random(f"header {kind}"), originals()[kind]
    for _ in range(300):
        head = damaged(original[:60], rng) + original[60:]
        with suppress(InvalidImage, TooLarge):
            header = read_header(head)
            assert 0 < header.bytes_cost <= header.cost
            assert header.cost >= header.height * header.width * 0.04
            codecs.decode(head, header=header, frames="first")


@pytest.mark.parametrize(
    "spell",
    [
        lambda text: text,
        lambda text: "data:application/octet-stream;base64," + text,
        lambda text: "data:;base64," + text,
        lambda text: "data:image/svg+xml;charset=utf-8;base64," + text,
        lambda text: text.replace("+", "-").replace("/", "_").rstrip("="),
        lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n",
    ],
)
def test_base64_is_read_in_every_spelling(spell):
    data = saved(picture(pixels(2, 20, 20, 3)))
    assert from_base64(spell(base64.b64encode(data).decode()), "/image") == data


@pytest.mark.parametrize("text", ["https://example.org/x.png", "C:\\x.png", "data:image/png,abc", "no base64!"])
def test_what_is_no_base64_is_refused_for_what_it_is(text):
    with pytest.raises(Exception, match="not fetched" if text.startswith("http") else "base64") as caught:
        from_base64(text, "/image")
    assert caught.value.status == 422 and caught.value.field == "/image"


def cut(data: bytes, share: float) -> bytes:
    """A JPEG whose pixels end early, with an end marker."""
    start = data.index(b"\xff\xda") + 14
    return data[: start + int((len(data) - start) * share)] + b"\xff\xd9"


@pytest.mark.parametrize("share", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_cut_short_is_refused_whatever_marker_ends_it(share, options, mode):
    data = saved(picture(pixels(3, 150, 130, 3)).convert(mode), "JPEG", **options)
    assert (codecs.decode(data) == codecs.decode(data + b"trailer")).all()
    for ending in (b"", b"\xff\xd0\xff\xd9", b"\xff\xd9" * 3):
        with pytest.raises(InvalidImage, match="cut short"):
            codecs.decode(cut(data, share) + ending)


def test_a_large_jpeg_with_the_pixels_of_a_small_one_is_refused():
    data = bytearray(saved(picture(pixels(3, 300, 300, 3)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 4000, 4000)
    with pytest.raises(InvalidImage, match="cut short"):
        codecs.decode(bytes(data))


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    data = saved(picture(pixels(3, 90, 90, 3)), "JPEG", progressive=True)
    assert codecs.decode(data).shape == (3, 90, 90)
    scans = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    assert len(scans) == 10
    for stop in scans[1:]:
        with pytest.raises(InvalidImage, match="cut short"):
            codecs.decode(data[:stop] + b"\xff\xd9")


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_webp_that_is_cut_short_is_refused_though_its_sizes_agree(lossless, share):
    data = saved(picture(pixels(3, 90, 90, 3)), "WEBP", lossless=lossless)
    body = data[20 : 20 + int((len(data) - 20) * share) // 2 * 2]
    short = b"RIFF" + struct.pack("<I", 12 + len(body)) + data[8:16] + struct.pack("<I", len(body)) + body
    with pytest.raises(InvalidImage, match="cut short"):
        codecs.decode(short)


def test_metadata_of_a_jpeg_stay_out_of_the_decoder():
    image = picture(pixels(4, 40, 30, 3))
    data = saved(image, "JPEG")
    bare = codecs.decode(data)
    stuffed = data[:2] + b"\xff\xfe\x00\x0anothing!" + b"\xff\xed\x00\x10Photoshop 3.0" + b"\0" + data[2:]
    assert (codecs.decode(stuffed) == bare).all()
    assert (np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) == bare).all()
