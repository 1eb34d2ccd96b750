"""Image bytes to pixels. Plain 8-bit PNGs take a fast decoder, everything else takes Pillow; the pixels are equal."""

import io
from typing import Any, Literal

import numpy as np
import pyspng
from PIL import Image

from app.core.errors import InvalidImage, TooLarge
from workers.codecs.flatten import flatten, indices
from workers.codecs.header import Header, read_header
from workers.codecs.pixels import fit, with_channels

WHITE = (255, 255, 255)
SPNG_FORMATS = {1: pyspng.c.SPNG_FMT_G8, 3: pyspng.c.SPNG_FMT_RGB8}
Frames = Literal["first"] | None


def decode(
    data: bytes,
    channels: int | None = None,
    *,
    frames: Frames = None,
    background: tuple[int, int, int] = WHITE,
    least_side: int | None = None,
) -> np.ndarray:
    """uint8 (C, H, W); C is 1 for gray and 3 for colour images unless `channels` says otherwise.

    The picture is turned upright, brought to sRGB and laid over `background` where it is transparent. Animations are
    refused unless `frames="first"`. A JPEG is decoded at a half, quarter or eighth of its size, which is several times
    faster, as long as no side gets shorter than `least_side`. Raises InvalidImage, and nothing else, for whatever the
    bytes are.
    """
    header = read_header(data)
    pixels = _fast(data, header) if header.plain_channels else None
    if pixels is None:
        pixels = _with_pillow(data, header, lambda image: flatten(image, header, background, least_side), frames)
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


def decode_alike(channels: int, images: list[bytes], most: int) -> np.ndarray:
    """uint8 (N, channels, H, W) of images that have one size, whichever; an error names the first that differs.

    Raises TooLarge, before anything is decoded, for more than `most` pixels in all.
    """
    pixels = sum(header.height * header.width for header in map(read_header, images))
    if pixels > most:
        raise TooLarge(
            f"These images have {pixels} pixels; {most} may come at once.",
            field="image",
            remedy="Send 'Prefer: respond-async', fewer or smaller images, or resize=true.",
        )
    found = []
    for index, data in enumerate(images):
        try:
            found.append(decode(data, channels))
        except InvalidImage as error:
            if len(images) > 1:
                error.field = f"images/{index}"
            raise
        if found[index].shape != found[0].shape:
            first, other = (f"{pixels.shape[1]} x {pixels.shape[2]}" for pixels in (found[0], found[index]))
            raise InvalidImage(
                f"The images of one request have one size; the first is {first} (height x width), this one {other}.",
                field=f"images/{index}",
                remedy="Add resize=true, or send images of other sizes in requests of their own.",
            )
    return np.stack(found)


def decode_mask(data: bytes) -> np.ndarray:
    """uint8 (H, W) of class indices: the palette indices or gray values of a PNG, as they are."""
    header = read_header(data)
    if header.format != "PNG":
        raise InvalidImage("A mask is a PNG of class indices; other formats may change the indices.")
    if header.depth == 16:
        raise InvalidImage("A mask has 8 bits or less; this one has 16.")
    return _with_pillow(data, header, indices, None)


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
