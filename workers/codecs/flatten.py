"""An opened Pillow image to plain pixels: 8-bit gray or sRGB without transparency, of the channels and size needed."""

import io
import re
import struct
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from app.core.errors import InvalidImage
from app.core.images import Header

SRGB = ImageCms.createProfile("sRGB")
ORIENTATION = 0x0112
EXIF_HEAD = re.compile(rb"(?:Exif\0\0)*")
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(="|>)([0-9])')
BYTE_ORDERS = {b"II": "<", b"MM": ">"}
INTEGERS = {1: "B", 3: "H", 4: "I"}
"""Types of EXIF values as `struct` writes them."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def flatten(
    image: Image.Image, header: Header, background: tuple[int, int, int], least_side: int | None, channels: int | None
) -> np.ndarray:
    """uint8 (C, H, W): upright, in sRGB, over the background; gray images, and all where `channels` is 1, have one."""
    if least_side and header.format == "JPEG":
        image.draft(None, (least_side, least_side))
    image.load()
    image = _upright(image)
    if image.mode.startswith("I"):
        return _sixteen_bits(image, background)
    gray = header.gray or image.mode in ("1", "L", "LA")
    palette = image.mode == "P"
    _scale_transparency(image, header.depth)
    image = _to_srgb(image)
    if image.has_transparency_data:
        backdrop = Image.new("RGBA", image.size, (*background, 255))
        image = Image.alpha_composite(backdrop, image.convert("RGBA"))
    gray = gray or (channels == 1 and image.mode in ("RGB", "RGBA"))  # equal to `with_channels`, and faster
    pixels = np.asarray(image.convert("L" if gray else "RGB"))
    if pixels.ndim == 2:
        return pixels[None]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    # gray images are often saved with a palette of grays
    return pixels[:1] if palette and (pixels == pixels[0]).all() else pixels


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(orientation(image.info))
    except Exception:
        return image  # the image may be fine though its metadata is not
    return image if turn is None else image.transpose(turn)


def orientation(info: dict[str, Any]) -> int | None:
    """The number 1 to 8 that says how the picture lies, from EXIF data, else from XMP data; Pillow would read all EXIF
    data, which may be thousands of times larger in memory than in the file."""
    exif = info.get("exif") or b""
    if not exif and "Raw profile type exif" in info:
        exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
    start = EXIF_HEAD.match(exif).end()
    if order := BYTE_ORDERS.get(exif[start : start + 2]):
        first = start + struct.unpack_from(order + "I", exif, start + 4)[0]
        (count,) = struct.unpack_from(order + "H", exif, first)
        for at in range(first + 2, min(first + 2 + 12 * count, len(exif) - 11), 12):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, at)
            if tag == ORIENTATION and kind in INTEGERS and values == 1:
                return struct.unpack_from(order + INTEGERS[kind], exif, at + 8)[0]
    xmp = info.get("XML:com.adobe.xmp") or info.get("xmp") or b""
    match = XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(match[2]) if match else None


def _sixteen_bits(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """Keeps the high byte; Pillow's own conversion clips, which turns most 16-bit images white."""
    deep = np.asarray(image)
    pixels = (deep >> 8).astype(np.uint8)
    if "transparency" in image.info:
        backdrop = with_channels(np.array(background, np.uint8).reshape(3, 1, 1), 1)
        pixels[deep == image.info["transparency"]] = backdrop.item()
    return pixels[None]


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Scales the transparent colour of a PNG to 8 bits: Pillow scales only the pixels."""
    colour = image.info.get("transparency")
    if depth == 16 and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif depth in (2, 4) and image.mode == "L" and isinstance(colour, int):
        image.info["transparency"] = min(255, colour * 255 // (2**depth - 1))


def _to_srgb(image: Image.Image) -> Image.Image:
    stored = image.info.get("icc_profile")
    if not isinstance(stored, bytes):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(stored))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        if image.mode == "P" or "transparency" in image.info:
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, SRGB, outputMode=mode)
    except Exception:
        return image  # an unusable profile is ignored, as browsers do


def indices(image: Image.Image) -> np.ndarray:
    """uint8 (H, W) of the stored numbers, whatever colours they stand for."""
    image.load()
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode == "1":
        return np.array(image, dtype=np.uint8)
    bands = np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode in ("RGB", "LA", "RGBA") and (bands == bands[..., :1]).all():
        return np.ascontiguousarray(bands[..., 0])
    raise InvalidImage("The mask has colours.", remedy="Save it as a PNG of class indices, gray or with a palette.")


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Converts gray to three equal channels, or colour to luma; axis -3 is the channel."""
    present = image.shape[-3]
    if present == channels:
        return image
    if present == 1:
        return np.repeat(image, channels, axis=-3)
    # ITU-R 601-2 luma with 16 fractional bits: equal to Pillow's convert("L")
    luma = np.full((*image.shape[:-3], *image.shape[-2:]), 0x8000, np.uint32)
    for channel, weight in enumerate((19595, 38470, 7471)):
        luma += image[..., channel, :, :] * np.uint32(weight)
    return (luma >> 16).astype(np.uint8)[..., None, :, :]


def fit(image: np.ndarray, height: int, width: int, *, nearest: bool = False) -> np.ndarray:
    """Scales (C, H, W) or a mask (H, W) to the size. Crops in the middle where proportions differ, never squeezes."""
    old_height, old_width = image.shape[-2:]
    if (old_height, old_width) == (height, width):
        return image
    scale = min(old_height / height, old_width / width)
    top, left = (old_height - height * scale) / 2, (old_width - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    # Pillow's bicubic kernel widens when it shrinks an image, so nothing aliases
    kernel = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    if image.ndim == 2:
        return np.asarray(Image.fromarray(image).resize((width, height), kernel, box))
    bands = [np.asarray(Image.fromarray(band).resize((width, height), kernel, box)) for band in image]
    return np.stack(bands)
