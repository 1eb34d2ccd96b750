"""Image bytes to pixels. Plain 8-bit PNGs take a fast decoder, all other files Pillow; the pixels are equal."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyspng
from PIL import Image

from app.core.errors import InvalidImage, TooLarge
from app.core.images import Header, read_header, read_headers
from workers.codecs import jpeg
from workers.codecs.flatten import fit, flatten, indices, with_channels

if TYPE_CHECKING:
    import torch

WHITE = (255, 255, 255)
SPNG_FORMATS = {1: pyspng.c.SPNG_FMT_G8, 3: pyspng.c.SPNG_FMT_RGB8}
Frames = Literal["first"] | None


def decode(
    data: bytes,
    channels: int | None = None,
    *,
    header: Header | None = None,
    frames: Frames = None,
    background: tuple[int, int, int] = WHITE,
    least_side: int | None = None,
) -> np.ndarray:
    """uint8 (C, H, W); C is 1 for gray and 3 for colour images unless `channels` says otherwise.

    The image is turned upright, converted to sRGB and laid over `background` where it is transparent. Animations are
    refused unless `frames="first"`. With `least_side`, a JPEG is decoded at a half, quarter or eighth of its size
    (several times faster) as long as no side gets shorter than that. `header`: if it has been read already.
    Raises only InvalidImage, whatever the bytes are.
    """
    header = header or read_header(data)
    pixels = _fast(data, header) if header.plain_channels else None
    if pixels is None:
        pixels = _with_pillow(
            data, header, lambda image: flatten(image, header, background, least_side, channels), frames
        )
    return pixels if channels in (None, len(pixels)) else with_channels(pixels, channels)


def decode_for(facts: dict[str, Any], data: bytes, *, resize: bool = False, **options) -> np.ndarray:
    """uint8 (C, H, W) with the size and channels of `facts` (the facts of a model or dataset)."""
    pixels = decode(data, facts["channels"], **options)
    height, width = facts["height"], facts["width"]
    if pixels.shape[1:] == (height, width):
        return pixels
    if resize:
        return fit(pixels, height, width)
    raise InvalidImage(
        f"The model takes images of {height} x {width} pixels (height x width); "
        f"this image has {pixels.shape[1]} x {pixels.shape[2]}.",
        field="image",
        remedy="Add resize=true, or send an image of that size.",
    )


def decode_batch(
    facts: dict[str, Any],
    images: Sequence[bytes],
    headers: Sequence[Header] | None = None,
    *,
    resize: bool = False,
    one: Callable[..., np.ndarray] = decode_for,
) -> np.ndarray:
    """uint8 (N, C, H, W) with the size and channels of `facts`; an error names the image. `one` decodes an image."""
    headers = headers or read_headers(images)
    batch = np.empty((len(images), facts["channels"], facts["height"], facts["width"]), np.uint8)
    for index, (data, header) in enumerate(zip(images, headers, strict=True)):
        with naming(index, len(images)):
            batch[index] = one(facts, data, resize=resize, header=header)
    return batch


def decode_alike(
    channels: int | None,
    images: Sequence[bytes],
    most: int,
    headers: Sequence[Header] | None = None,
    *,
    one: Callable[..., np.ndarray] = decode,
) -> np.ndarray:
    """uint8 (N, channels, H, W) of images of one size, whichever it is; an error names the first that differs.

    `channels`: None for those of the first image. Raises TooLarge for more than `most` pixels in all, before anything
    is decoded.
    """
    headers = headers or read_headers(images)
    pixels = sum(header.height * header.width for header in headers)
    if pixels > most:
        raise TooLarge(
            f"A request may have at most {most} pixels; these images have {pixels}.",
            field="image",
            remedy="Add the header Prefer: respond-async, send fewer or smaller images, or add resize=true.",
        )
    batch: list[np.ndarray] = []
    for index, (data, header) in enumerate(zip(images, headers, strict=True)):
        with naming(index, len(images)):
            batch.append(one(data, channels, header=header))
        channels = channels or len(batch[0])
        if batch[index].shape != batch[0].shape:
            first, other = (f"{pixels.shape[1]} x {pixels.shape[2]}" for pixels in (batch[0], batch[index]))
            raise InvalidImage(
                f"All images of a request must have one size; the first is {first} (height x width), this one {other}.",
                field=f"images/{index}",
                remedy="Add resize=true, or send images of other sizes in separate requests.",
            )
    return np.stack(batch)


@contextmanager
def naming(index: int, count: int) -> Iterator[None]:
    """Inside, an error about an image names it, unless it is the only one."""
    try:
        yield
    except InvalidImage as error:
        if count > 1:
            error.field = f"images/{index}"
        raise


def to_tensor(images: np.ndarray) -> "torch.Tensor":
    """uint8 images as float32 in [0, 1]."""
    import torch

    return torch.from_numpy(images).to(torch.float32).div_(255)


def decode_mask(data: bytes, *, header: Header | None = None) -> np.ndarray:
    """uint8 (H, W) of class indices: the palette indices or gray values of a PNG, unchanged."""
    header = header or read_header(data)
    if header.format != "PNG":
        raise InvalidImage(
            f"A mask must be a PNG of class indices; this is {header.format}, which may change the indices.",
            remedy="Save the mask as PNG.",
        )
    if header.depth == 16:
        raise InvalidImage("A mask must have at most 8 bits per pixel; this one has 16.", remedy="Save it with 8 bits.")
    return _with_pillow(data, header, indices, None)


def _fast(data: bytes, header: Header) -> np.ndarray | None:
    try:
        pixels = pyspng.c.spng_decode_image_bytes(data, SPNG_FORMATS[header.plain_channels])
    except Exception:
        return None  # damaged: Pillow decides
    if header.plain_channels == 1:
        return pixels.reshape(1, header.height, header.width)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _with_pillow(data: bytes, header: Header, read, frames: Frames) -> np.ndarray:
    """The only place where Pillow reads foreign bytes: its exceptions depend on the bytes, so all are caught."""
    try:
        about: dict[str, bytes] = {}
        if header.format == "JPEG":
            data, about = jpeg.prepared(data)
        with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
            if image.size != (header.width, header.height):
                raise InvalidImage("The file states two different image sizes.", remedy="Re-save it as PNG.")
            if getattr(image, "n_frames", 1) > 1 and frames != "first":
                raise InvalidImage(
                    f"The image is an animation of {image.n_frames} frames.",
                    remedy="Send one frame, or add frames=first.",
                )
            image.info |= about
            return read(image)
    except InvalidImage:
        raise
    except Exception as error:
        raise InvalidImage(
            f"The {header.format} image is damaged or cut short.", remedy="Re-save it as PNG in an image editor."
        ) from error
