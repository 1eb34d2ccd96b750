"""Image bytes to pixels. Plain 8-bit PNGs take a fast decoder, everything else takes Pillow; the pixels are equal."""

import io
from typing import Any, Literal

import numpy as np
import pyspng
from PIL import Image, ImageCms

from app.core.errors import InvalidImage
from workers.codecs.header import Header, read_header
from workers.codecs.pixels import fit, with_channels

WHITE = (255, 255, 255)
SPNG_FORMATS = {1: pyspng.c.SPNG_FMT_G8, 3: pyspng.c.SPNG_FMT_RGB8}
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
Frames = Literal["first"] | None


def decode(
    data: bytes, channels: int | None = None, *, frames: Frames = None, background: tuple[int, int, int] = WHITE
) -> np.ndarray:
    """uint8 (C, H, W); C is 1 for gray and 3 for colour images unless `channels` says otherwise.

    The picture is turned upright, brought to sRGB and laid over `background` where it is transparent. Animations are
    refused unless `frames="first"`. Raises InvalidImage, and nothing else, for whatever the bytes are.
    """
    header = read_header(data)
    pixels = _fast(data, header) if header.plain_channels else None
    if pixels is None:
        pixels = _with_pillow(data, header, lambda image: _flatten(image, header, background), frames)
    return pixels if channels is None else with_channels(pixels, channels)


def decode_for(facts: dict[str, Any], data: bytes, *, resize: bool = False, **options) -> np.ndarray:
    """uint8 (C, H, W) of the size and channels in `facts` (a model's or dataset's facts)."""
    pixels = decode(data, facts["channels"], **options)
    height, width = facts["height"], facts["width"]
    if pixels.shape[1:] == (height, width):
        return pixels
    if resize:
        return fit(pixels, height, width)
    raise InvalidImage(
        f"The image is {pixels.shape[1]} x {pixels.shape[2]} pixels (height x width); "
        f"the model takes {height} x {width}.",
        field="image",
        remedy="Add resize=true, or send an image of that size.",
    )


def decode_batch(facts: dict[str, Any], images: list[bytes], *, resize: bool = False, **options) -> np.ndarray:
    """uint8 (N, C, H, W) for a model; an error names the image it is about."""
    batch = np.empty((len(images), facts["channels"], facts["height"], facts["width"]), np.uint8)
    for index, data in enumerate(images):
        try:
            batch[index] = decode_for(facts, data, resize=resize, **options)
        except InvalidImage as error:
            if len(images) > 1:
                error.field = f"images/{index}"
            raise
    return batch


def decode_mask(data: bytes) -> np.ndarray:
    """uint8 (H, W) of class indices: the palette indices or gray values of a PNG, as they are."""
    header = read_header(data)
    if header.format != "PNG":
        raise InvalidImage("A mask is a PNG of class indices; other formats may change the indices.")
    if header.depth == 16:
        raise InvalidImage("A mask has 8 bits or less; this one has 16.")
    return _with_pillow(data, header, _indices, None)


def _fast(data: bytes, header: Header) -> np.ndarray | None:
    try:
        pixels = pyspng.c.spng_decode_image_bytes(data, SPNG_FORMATS[header.plain_channels])
    except Exception:
        return None  # damaged: Pillow has the last word
    if header.plain_channels == 1:
        return pixels.reshape(1, header.height, header.width)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _with_pillow(data: bytes, header: Header, read, frames: Frames) -> np.ndarray:
    """The one place where Pillow meets foreign bytes: what it raises depends on the bytes, so everything is caught."""
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            if image.size != (header.width, header.height):
                raise InvalidImage("The image states two different sizes.")
            # a JPEG with several pictures (MPO) is a photo with its previews, not an animation
            if header.format != "JPEG" and getattr(image, "n_frames", 1) > 1 and frames != "first":
                raise InvalidImage(
                    f"The image is an animation of {image.n_frames} frames.",
                    remedy="Send one frame, or add frames=first.",
                )
            return read(image)
    except InvalidImage:
        raise
    except Exception as error:
        raise InvalidImage(f"The {header.format} image is damaged or cut short.", remedy="Save it again.") from error


def _flatten(image: Image.Image, header: Header, background: tuple[int, int, int]) -> np.ndarray:
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


def _indices(image: Image.Image) -> np.ndarray:
    image.load()
    if image.mode in ("P", "L"):
        return np.array(image)
    if image.mode == "1":
        return np.array(image, dtype=np.uint8)
    bands = np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode in ("RGB", "LA", "RGBA") and (bands == bands[..., :1]).all():
        return np.ascontiguousarray(bands[..., 0])
    raise InvalidImage("The mask has colours.", remedy="Save it as a PNG of class indices (gray or palette).")
