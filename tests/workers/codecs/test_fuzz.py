"""Thousands of damaged files: whatever the bytes are, the answer is pixels or InvalidImage, and soon."""

import random
import struct
import time
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import InvalidImage, InvalidRequest
from tests.workers.pictures import picture, pixels, saved
from workers import codecs

SECONDS = 2.0


def originals() -> dict[str, bytes]:
    colour, gray = picture(pixels(1, 17, 23, 3)), picture(pixels(2, 17, 23))
    frames = {"save_all": True, "append_images": [colour.rotate(180)]}
    return {
        "png": saved(colour),
        "png-gray": saved(gray),
        "png-palette": saved(colour.convert("P"), transparency=3),
        "png-alpha": saved(colour.convert("RGBA")),
        "png-bits": saved(gray.convert("1")),
        "apng": saved(colour, **frames),
        "jpeg": saved(colour, "JPEG", icc_profile=b"x" * 300),
        "jpeg-progressive": saved(colour, "JPEG", progressive=True),
        "jpeg-cmyk": saved(colour.convert("CMYK"), "JPEG"),
        "webp": saved(colour, "WEBP"),
        "webp-lossless": saved(colour.convert("RGBA"), "WEBP", lossless=True),
        "webp-animated": saved(colour, "WEBP", **frames),
        "npy": codecs.encode_npy(pixels(3).astype("f4")),
    }


def damaged(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice((0, 1, 127, 128, 255))
            case 2:
                del data[at : at + rng.randrange(1, 20)]
            case 3:
                data[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                data[at:at] = data[at : at + 40]
            case _:
                data[at : at + 4] = rng.randbytes(4)
        if not data:
            break
    return bytes(data)


def with_valid_checksums(data: bytes) -> bytes:
    """The same PNG with every chunk's checksum corrected, so that the decoders look further than that."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = struct.unpack_from(">I", data, at)[0]
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


def survives(data: bytes, kind: str) -> None:
    started = time.perf_counter()
    try:
        if kind == "npy":
            codecs.decode_npy(data)
        else:
            array = codecs.decode(data)
            assert array.ndim == 3 and array.shape[0] in (1, 3)
    except (InvalidImage, InvalidRequest) as error:
        assert error.detail.endswith(".")
    with suppress(InvalidImage):
        codecs.decode_mask(data)
    assert time.perf_counter() - started < SECONDS


@pytest.mark.filterwarnings("ignore")  # Pillow warns about broken metadata, which is not our concern here
@pytest.mark.parametrize("kind", originals())
def test_damaged_files_are_refused_or_read(kind):
    rng, original = random.Random(kind), originals()[kind]
    for _ in range(700):
        data = damaged(original, rng)
        survives(data, kind)
        if "png" in kind:
            survives(with_valid_checksums(data), kind)


@pytest.mark.filterwarnings("ignore")
@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b""]), st.binary(max_size=200))
def test_any_bytes_after_a_magic_are_refused_or_read(magic, rest):
    survives(magic + rest, "image")


@given(st.binary(max_size=200))
def test_any_bytes_after_the_npy_magic_are_refused_or_read(rest):
    survives(b"\x93NUMPY\1\0" + rest, "npy")
