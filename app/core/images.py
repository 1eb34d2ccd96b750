"""Images as clients send them, not decoded: the header with format, size and the CPU time of decoding; base64 text.

The time is counted in pixels: one is a pixel of an 8-bit colour PNG of a photo, PIXEL_NANOSECONDS of one core. Measured
with Pillow 13, in nanoseconds per pixel of the image and per byte of the file:

    kind                                 per pixel                                      per byte
    PNG, plain (8 bits, no conversion)   1 for each byte of a stored pixel              8
    PNG, other                           3.5 for each byte of a stored pixel            8
    JPEG, sequential                     1.8 for each component                         8
    JPEG, progressive                    1.8 for each component, .75 for each scan      30 (arithmetic coding: 60)
    WebP, lossy                          6                                              50
    WebP, lossless                       6                                              8
    all but plain PNG                    8 more to convert it
    with transparency                    5 more (lossy WebP: 11)
    with a colour profile                20 more
    turned by its orientation            6 more

and 3 microseconds for each chunk of a PNG or WebP, 10 for each image, 40 where Pillow decodes it.
"""

import base64
import binascii
import re
import struct
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

from app.core.errors import InvalidImage, InvalidRequest, TooLarge
from app.core.settings import settings

ACCEPTED = "Send PNG, JPEG or WebP."
PIXEL_NANOSECONDS = 20
CHUNK, PLAIN_IMAGE, IMAGE = 3_000, 10_000, 40_000
CONVERSION, TRANSPARENT, PROFILE, TURNED = 8, 5, 20, 6
IN_PROCESS_PIXELS = 1_000_000
"""Images of a call that cost more pixels than this together (20 ms) are decoded in a process of their own."""
MAX_JPEG_SCANS = 100
"""Each scan of a progressive JPEG covers the whole image: a small file with many scans would take hours."""
MAX_JPEG_SEGMENTS = 1_000
"""Segments before the pixels of a JPEG. 20 MB of metadata fill 320, as each has up to 64 kB."""
MAX_CHUNKS = 30_000
"""Chunks of a PNG or WebP. 20 MB of pixels fill 2,500 of the 8 kB that libpng writes."""
REDUCED = 6
"""A JPEG that is decoded at a quarter or less of its size takes this part of the time per pixel."""

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
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Chunks that change no pixel. Colour profiles, transparency, orientation and animation do: Pillow reads those files.
HARMLESS = {b"IDAT", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"bKGD", b"sBIT"}
HARMLESS_TEXTS = (b"Software\0", b"Title\0", b"Author\0", b"Comment\0", b"Description\0", b"date:")
FILL = re.compile(rb"\xff*")
DATA_URL = re.compile(r"data:[^,]{0,200}?;base64,", re.IGNORECASE)
ADDRESS = re.compile(r"(https?|ftp|file|s3):", re.IGNORECASE)
PLAIN_BASE64 = str.maketrans("-_", "+/", " \t\r\n=")
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


class Header(NamedTuple):
    """`plain_channels`: 1 or 3 for an 8-bit PNG that needs no conversion, else 0. `depth`: bits of a PNG's channel.

    `cost`: CPU time of decoding in pixels (see above); `bytes_cost`: the part that does not shrink with the image.
    """

    format: str
    height: int
    width: int
    gray: bool = False
    depth: int = 8
    plain_channels: int = 0
    cost: int = 0
    bytes_cost: int = 0


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


def read_headers(images: Sequence[bytes], most: float = inf) -> list[Header]:
    """The headers of the images of one request. Raises InvalidImage, which names the image unless it is the only one,
    and TooLarge as soon as decoding them costs more than `most` pixels."""
    headers, cost = [], 0
    for index, data in enumerate(images):
        try:
            headers.append(read_header(data))
        except InvalidImage as error:
            error.field = f"images/{index}" if len(images) > 1 else None
            raise
        cost += headers[index].cost
        if cost > most:
            raise too_costly(cost, most, index + 1, len(images))
    return headers


def too_costly(cost: int, most: float, count: int, total: int) -> TooLarge:
    """The error for the first `count` of `total` images, which cost more than `most` pixels together."""
    which = (
        "image counts" if total == 1 else f"{total} images count" if count == total else f"first {count} images count"
    )
    job = "" if most >= settings().job_pixels else ", or send 'Prefer: respond-async' to make the request a job"
    return TooLarge(
        f"The {which} as {cost:,} pixels; the maximum is {most:,}. Pixels of 16 bits, with transparency, with a colour "
        "profile, of a progressive JPEG or of much detail count several times.",
        field="image",
        remedy=f"Send fewer or smaller images, or 8-bit PNG files{job}.",
    )


def cost_of(header: Header, least_side: int | None) -> int:
    """The cost of decoding in pixels. With `least_side`, a JPEG is decoded smaller, but never below that side."""
    if header.format != "JPEG" or not least_side or min(header.height, header.width) < 4 * least_side:
        return header.cost
    return header.bytes_cost + (header.cost - header.bytes_cost) // REDUCED


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment before the pixels; start and stop enclose the body after its length. The
    last one is the start of the first scan. Ends early where the data are no segment. Raises InvalidImage for too many.
    """
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        if data[at : at + 1] != b"\xff":
            return
        at = FILL.match(data, at).end()
        if at >= len(data):
            return
        kind = data[at]
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:  # markers without a body
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 1)
        if length < 2:
            return
        yield kind, at + 3, at + 1 + length
        if kind == START_OF_SCAN:
            return
        at += 1 + length
    raise InvalidImage(
        f"The JPEG has more than {MAX_JPEG_SEGMENTS} markers before its pixels.", remedy="Re-save it without metadata."
    )


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
    harmless, count, kinds = _png_chunks(data)
    stored = PNG_CHANNELS.get(colour, 4) * max(depth, 8) // 8
    if depth == 8 and colour in (0, 2) and interlace == 0 and harmless:
        costs = costs_of(width * height, stored, len(data), 8, count * CHUNK + PLAIN_IMAGE)
        return Header("PNG", height, width, colour == 0, depth, 3 if colour else 1, *costs)
    weight = 3.5 * stored + CONVERSION
    weight += TRANSPARENT * (colour in (4, 6) or b"tRNS" in kinds) + PROFILE * (b"iCCP" in kinds)
    weight += TURNED * (b"eXIf" in kinds)
    costs = costs_of(width * height, weight, len(data), 8, count * CHUNK + IMAGE)
    return Header("PNG", height, width, colour in (0, 4), depth, 0, *costs)


def _png_chunks(data: bytes) -> tuple[bool, int, set[bytes]]:
    """Whether the chunks up to the end change no pixel, how many they are, and the kinds of those that may."""
    at, count, kinds, ended = 33, 0, set(), False  # after the signature and IHDR
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            ended = True
            break
        if kind not in HARMLESS and not (kind == b"tEXt" and data.startswith(HARMLESS_TEXTS, at + 8)):
            kinds.add(kind)
        count += 1
        if count > MAX_CHUNKS:
            raise _too_many_chunks("PNG")
        at += 12 + length
    return ended and not kinds, count, kinds


def _jpeg(data: bytes) -> Header | None:
    frame, profile, exif = None, False, False
    for kind, start, _ in jpeg_segments(data):
        if frame is None and 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # start of frame
            frame = kind, *struct.unpack_from(">HHB", data, start + 1)
        profile |= kind == 0xE2 and data.startswith(b"ICC_PROFILE\0", start)
        exif |= kind == 0xE1
        if kind == START_OF_SCAN:
            break
    if frame is None:
        return None
    scans = data.count(b"\xff\xda")
    if scans > MAX_JPEG_SCANS:
        raise InvalidImage(
            f"The JPEG has more than {MAX_JPEG_SCANS} scans.", remedy="Re-save it as a baseline JPEG or a PNG."
        )
    kind, height, width, components = frame
    weight = 1.8 * components + CONVERSION + PROFILE * profile + TURNED * exif
    byte, fixed = 8, IMAGE
    if kind not in (0xC0, 0xC1):  # progressive, or with arithmetic coding
        byte, fixed = 30 if kind < 0xC8 else 60, fixed + int(0.75 * scans * width * height)
    costs = costs_of(width * height, weight, len(data), byte, fixed)
    return Header("JPEG", height, width, components == 1, 8, 0, *costs)


def _webp(data: bytes) -> Header | None:
    kind, count, extended = data[12:16], 1, 0
    if kind == b"VP8X":
        width, height = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        extended = data[20]
        kind, count = _webp_kind(data)
    elif kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        extended = bits >> 24 & 0x10  # bit 28 says that it has transparency, as bit 4 of VP8X does
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        return None
    lossless = kind == b"VP8L"
    weight = 6 + CONVERSION + bool(extended & 0x10) * (TRANSPARENT if lossless else 11)
    weight += PROFILE * bool(extended & 0x20) + TURNED * bool(extended & 0x08)
    costs = costs_of(width * height, weight, len(data), 8 if lossless else 50, count * CHUNK + IMAGE)
    return Header("WEBP", height, width, False, 8, 0, *costs)


def _webp_kind(data: bytes) -> tuple[bytes, int]:
    """The kind of the first chunk with pixels (empty where there is none), and the number of chunks."""
    at, kind, count = 12, b"", 0
    while at + 8 <= len(data):
        found, length = struct.unpack_from("<4sI", data, at)
        if found in (b"VP8 ", b"VP8L", b"ANMF"):
            kind = kind or found
        count += 1
        if count > MAX_CHUNKS:
            raise _too_many_chunks("WebP")
        at += 8 + length + length % 2
    return kind, count


def costs_of(pixels: int, per_pixel: float, size: int, per_byte: int, fixed: int) -> tuple[int, int]:
    """(cost, its part for the file's bytes) in pixels; the arguments are in nanoseconds."""
    of_bytes = size * per_byte + fixed
    return int(pixels * per_pixel + of_bytes) // PIXEL_NANOSECONDS, of_bytes // PIXEL_NANOSECONDS


def _too_many_chunks(name: str) -> InvalidImage:
    return InvalidImage(f"The {name} has more than {MAX_CHUNKS:,} chunks.", remedy="Re-save it in an image editor.")


def from_base64(text: str, field: str) -> bytes:
    """The bytes of base64 text: plain, URL-safe, without padding, in lines, or a data URL. Raises InvalidRequest."""
    if ADDRESS.match(text):
        raise InvalidRequest("URLs are not fetched.", field=field, remedy="Send the bytes of the file in base64.")
    text = DATA_URL.sub("", text, count=1) if text[:5].lower() == "data:" else text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        text = text.translate(PLAIN_BASE64)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        what = "The data URL has no base64 text" if text[:5].lower() == "data:" else "The text is not base64"
        raise InvalidRequest(f"{what}.", field=field, remedy="Encode the bytes of the file.") from None
