"""JPEG files as Pillow gets them: without metadata, and in a form in which data that are cut short cannot pass."""

import re
import struct

from app.core.errors import InvalidImage
from app.core.images import END_OF_IMAGE, START_OF_SCAN, jpeg_segments

SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), (0xC2, 0xCA)
EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
METADATA = {*range(0xE0, 0xF0), 0xFE}
PIXEL_SEGMENTS = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
"""Application segments that Pillow needs for the pixels, by their first bytes. It would read all others."""
MARKER = re.compile(rb"\xff+[^\x00\xff]")
MARKER_NOT_RESTART = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
PADDING = bytes(8)
"""In place of the end marker: the decoder reads up to 8 bytes ahead."""
COEFFICIENTS = 64


def prepared(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """(the file for Pillow, its `exif` and `xmp` data, where it has them). Raises InvalidImage if pixels lack.

    libjpeg takes zeros for what is missing before an end marker, and only warns. Without the marker, it asks for more
    data, which Pillow reports. A file of several scans needs its marker; it has every scan, or it is cut short.
    """
    kept, exif, about = [data[:2]], [], {}
    frame, scan, at, restarts = b"", b"", 2, False
    for kind, start, stop in jpeg_segments(data):
        body = data[start:stop]
        if kind == START_OF_SCAN:
            scan, at = body, stop
        elif kind == 0xE1 and body.startswith(EXIF):  # may take several segments
            exif.append(body[len(EXIF) :])
        elif kind == 0xE1 and body.startswith(XMP):
            about["xmp"] = body[len(XMP) :]
        elif kind in METADATA and not body.startswith(PIXEL_SEGMENTS.get(kind, ())):
            continue
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame = b"%c%b" % (kind, body)
        elif kind == 0xDD:
            restarts = any(body)
        if kind != 0xE1:
            kept.append(b"\xff%c%b%b" % (kind, struct.pack(">H", len(body) + 2), body))
    if not scan or len(frame) < 7:
        raise cut_short()
    if frame[0] in SEQUENTIAL and scan[0] == frame[6]:
        end = (MARKER_NOT_RESTART if restarts else MARKER).search(data, at)
        kept += [data[at : end.start()], PADDING] if end else [data[at:]]
    else:
        if not complete(data, frame, scan, at):
            raise cut_short()
        kept.append(data[at:])
    if exif:
        about["exif"] = b"".join(exif)
    return b"".join(kept), about


def complete(data: bytes, frame: bytes, scan: bytes, at: int) -> bool:
    """Whether the scans up to the end marker hold every coefficient of every component down to its last bit.

    `scan` is the head of the first one, whose data begin at `at`.
    """
    progressive = frame[0] in PROGRESSIVE
    missing = {(component, index) for component in frame[7::3] for index in range(COEFFICIENTS)}
    while True:
        count = scan[0]
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        last, low = (last, bits & 15) if progressive else (COEFFICIENTS - 1, 0)
        if low == 0:
            missing -= {
                (component, index) for component in scan[1 : 1 + 2 * count : 2] for index in range(first, last + 1)
            }
        scan, at = _next_scan(data, at)
        if not scan:
            return not missing


def _next_scan(data: bytes, at: int) -> tuple[bytes, int]:
    """The head of the next scan and the start of its data; empty after the last one."""
    while marker := MARKER_NOT_RESTART.search(data, at):
        kind, at = data[marker.end() - 1], marker.end()
        if kind == END_OF_IMAGE:
            break
        (length,) = struct.unpack_from(">H", data, at) if len(data) >= at + 2 else (0,)
        body, at = data[at + 2 : at + length], at + max(2, length)
        if kind == START_OF_SCAN and body:
            return body, at
    return b"", at


def cut_short() -> InvalidImage:
    return InvalidImage("The JPEG image is damaged or cut short.", remedy="Re-save it as PNG in an image editor.")
