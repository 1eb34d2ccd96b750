"""An opened Pillow image to plain pixels: every odd kind of picture ends as 8-bit gray or sRGB without transparency."""

import io

import numpy as np
from PIL import Image, ImageCms

from app.core.errors import InvalidImage
from workers.codecs.header import Header
from workers.codecs.pixels import with_channels

SRGB = ImageCms.createProfile("sRGB")
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def flatten(image: Image.Image, header: Header, background: tuple[int, int, int], least_side: int | None) -> np.ndarray:
    """uint8 (C, H, W): upright, in sRGB, over the background, gray as one channel."""
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
    pixels = np.asarray(image.convert("L" if gray else "RGB"))
    if gray:
        return pixels[None]
    pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    # a palette of grays is how gray pictures are often saved
    return pixels[:1] if palette and (pixels == pixels[0]).all() else pixels


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:
        return image  # broken metadata does not make a broken picture
    return image if turn is None else image.transpose(turn)


def _sixteen_bits(image: Image.Image, background: tuple[int, int, int]) -> np.ndarray:
    """The high byte; Pillow's own conversion clips, which turns most 16-bit pictures white."""
    deep = np.asarray(image)
    pixels = (deep >> 8).astype(np.uint8)
    if "transparency" in image.info:
        backdrop = with_channels(np.array(background, np.uint8).reshape(3, 1, 1), 1)
        pixels[deep == image.info["transparency"]] = backdrop.item()
    return pixels[None]


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """A PNG states its transparent colour in its own depth; Pillow scales the pixels to 8 bits but not this colour."""
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
    """uint8 (H, W) of the numbers that are stored, whatever colours they stand for."""
    image.load()
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode == "1":
        return np.array(image, dtype=np.uint8)
    bands = np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode in ("RGB", "LA", "RGBA") and (bands == bands[..., :1]).all():
        return np.ascontiguousarray(bands[..., 0])
    raise InvalidImage("The mask has colours.", remedy="Save it as a PNG of class indices (gray or palette).")
