"""Reads the header of an image without decoding it: format, size, and whether the fast decoder can read it."""

import struct
from typing import NamedTuple

from app.core.errors import InvalidImage
from app.core.settings import settings

ACCEPTED = "Send PNG, JPEG or WebP."
MAX_JPEG_SCANS = 100
"""Each scan of a progressive JPEG covers the whole image: a small file with many scans would take hours."""

OTHERS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"<svg": "an SVG",
    b"<?xm": "an XML file",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a npy array",
    b"8BPS": "a Photoshop file",
    b"qoif": "a QOI image",
}
# Chunks that change no pixel. Colour profiles, transparency, orientation and animation do: Pillow reads those files.
HARMLESS = {b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"bKGD", b"sBIT"}
HARMLESS_TEXTS = (b"Software\0", b"Title\0", b"Author\0", b"Comment\0", b"Description\0", b"date:")


class Header(NamedTuple):
    """`plain_channels`: 1 or 3 for an 8-bit PNG that needs no conversion, else 0. `depth`: bits of a PNG's channel."""

    format: str
    height: int
    width: int
    gray: bool = False
    depth: int = 8
    plain_channels: int = 0


def read_header(data: bytes) -> Header:
    """The header of a PNG, JPEG or WebP image. Raises InvalidImage for other data and for sizes out of bounds."""
    limits = settings()
    if len(data) > limits.max_image_bytes:
        raise InvalidImage(
            f"The image has {len(data)} bytes; at most {limits.max_image_bytes} are allowed.", remedy="Scale it down."
        )
    try:
        header = _read(data)
    except (struct.error, IndexError):
        header = None
    if header is None:
        raise InvalidImage("The image ends inside its header.", remedy="Re-save it as PNG in an image editor.")
    _, height, width, *_ = header
    if not (0 < width <= limits.max_side and 0 < height <= limits.max_side and width * height <= limits.max_pixels):
        raise InvalidImage(
            f"The image has {height} x {width} pixels (height x width); sides of 1 to {limits.max_side} and at most "
            f"{limits.max_pixels} pixels are allowed.",
            remedy="Scale it down.",
        )
    return header


def _read(data: bytes) -> Header | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    raise InvalidImage(f"Unsupported image format: the data is {_guess(data)}.", remedy=ACCEPTED)


def _guess(data: bytes) -> str:
    if not data:
        return "empty"
    if data[4:8] == b"ftyp":
        return "a HEIC, AVIF or video file"
    return next((name for magic, name in OTHERS.items() if data.startswith(magic)), "not an image")


def _png(data: bytes) -> Header | None:
    kind, width, height, depth, colour, _, _, interlace = struct.unpack_from(">4sIIBBBBB", data, 12)
    if kind != b"IHDR":
        return None
    plain = depth == 8 and colour in (0, 2) and interlace == 0 and _only_harmless_chunks(data)
    return Header("PNG", height, width, colour in (0, 4), depth, (3 if colour else 1) if plain else 0)


def _only_harmless_chunks(data: bytes) -> bool:
    at = 33  # the signature and IHDR
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return True
        if kind not in HARMLESS and not (kind == b"tEXt" and data.startswith(HARMLESS_TEXTS, at + 8)):
            return False
        at += 12 + length
    return False


def _jpeg(data: bytes) -> Header | None:
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise InvalidImage(
            f"The JPEG has more than {MAX_JPEG_SCANS} scans.", remedy="Re-save it as a baseline JPEG or a PNG."
        )
    at = 2
    while data[at] == 0xFF:
        kind = data[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return Header("JPEG", height, width, components == 1)
        alone = kind == 0x01 or 0xD0 <= kind <= 0xD8
        at += 1 if kind == 0xFF else 2 if alone else 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _webp(data: bytes) -> Header | None:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    return Header("WEBP", height, width)
