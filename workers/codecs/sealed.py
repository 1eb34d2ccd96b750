"""The decoders as a room offers them (workers/sandbox): what they raise about an image comes back as a problem."""

import ctypes
import io
from typing import Any

from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from app.core.errors import InvalidImage
from app.core.images import Header
from workers.codecs.decode import decode, decode_for, decode_mask

FUNCTIONS = {"decode": decode, "decode_for": decode_for, "decode_mask": decode_mask}
PLUGINS = (JpegImagePlugin, PngImagePlugin, WebPImagePlugin)  # Pillow imports them when it first needs them
MMAP_THRESHOLD, MMAP_BYTES = -3, 1 << 20


def prepare() -> None:
    """Loads what is loaded on first use, and has large pieces of memory returned to the system when they are freed."""
    for name in ("PNG", "JPEG", "WEBP"):
        file, profile = io.BytesIO(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        Image.new("RGB", (8, 8)).save(file, name, icc_profile=profile)
        data = file.getvalue()
        decode(data, header=Header(name, 8, 8))
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, MMAP_BYTES)


def run(function: str, arguments: list[Any], header: list[Any], options: dict[str, Any]) -> dict[str, Any]:
    """{"pixels": array}, or {"problem": ...} of an InvalidImage."""
    try:
        return {"pixels": FUNCTIONS[function](*arguments, header=Header(*header), **options)}
    except InvalidImage as error:
        return {"problem": error.problem()}
