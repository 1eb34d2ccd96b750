"""Pixels to image bytes. The PNG writer is our own: for small images the usual libraries take longer than the model."""

import io
import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib
from PIL import Image

from workers.codecs.flatten import with_channels

if TYPE_CHECKING:
    import torch

    Images = np.ndarray | torch.Tensor

COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
PALETTE_TYPE = 3
# Level 0 of igzip is ten times faster than level 1 but writes larger files: used up to 32 x 32 pixels.
FAST_PIXELS = 32 * 32
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def to_uint8(images: "Images") -> np.ndarray:
    """Rounds floats in [0, 1] to 256 levels (clipped, NaN becomes 0); uint8 is returned unchanged."""
    if isinstance(images, np.ndarray):
        if images.dtype == np.uint8:
            return images
        return np.rint(np.nan_to_num(np.clip(images, 0, 1)) * 255).astype(np.uint8)
    if images.is_floating_point():
        # quantise on the device: a quarter of the bytes leave the accelerator
        images = images.detach().nan_to_num().mul(255).round_().clamp_(0, 255).byte()
    return images.cpu().numpy()


def encode(images, encoding: str) -> list[bytes]:
    """Images (N, C, H, W), uint8 or float in [0, 1], or class indices (N, H, W), as "png" or "webp" files."""
    if images.ndim == 3:
        return encode_masks(images) if encoding == "png" else encode_webp(coloured(images))
    return {"png": encode_png, "webp": encode_webp}[encoding](images)


def encode_png(images) -> list[bytes]:
    images = to_uint8(images)
    channels, height, width = images.shape[1:]
    return _write(images, _head(width, height, COLOUR_TYPES[channels]))


def encode_masks(masks) -> list[bytes]:
    """Class indices (N, H, W) as palette PNGs: pixel values are the indices, viewers show colours."""
    masks = np.asarray(masks, dtype=np.uint8)
    height, width = masks.shape[1:]
    return _write(masks[:, None], _head(width, height, PALETTE_TYPE) + _chunk(b"PLTE", class_colours().tobytes()))


def class_colours() -> np.ndarray:
    """256 distinct colours (256, 3): the bits of the index, spread over the channels from the top; 0 is black."""
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            if 3 * bit + channel < 8:
                colours[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def coloured(masks) -> np.ndarray:
    """Class indices (N, H, W) in the colours of `class_colours`, uint8 (N, 3, H, W)."""
    return np.ascontiguousarray(class_colours()[np.asarray(masks, dtype=np.uint8)].transpose(0, 3, 1, 2))


def encode_webp(images) -> list[bytes]:
    """Lossless WebP."""
    return [_webp(image) for image in np.ascontiguousarray(with_channels(to_uint8(images), 3).transpose(0, 2, 3, 1))]


def _webp(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, method=0)
    return file.getvalue()


def grid_png(images, columns: int | None = None, gap: int = 2, background: int = 255) -> bytes:
    """A contact sheet as PNG, row by row; as square as possible unless `columns` is given."""
    return encode_png(grid(to_uint8(images), columns, gap, background)[None])[0]


def grid(images: np.ndarray, columns: int | None = None, gap: int = 2, background: int = 255) -> np.ndarray:
    """A contact sheet, uint8 (C, height, width), of images uint8 (N, C, H, W); `gap` in pixels."""
    count, channels, height, width = images.shape
    columns = max(1, min(columns or math.ceil(math.sqrt(count)), count))
    rows = math.ceil(count / columns)
    sheet = np.full(
        (channels, max(1, rows * (height + gap) - gap), columns * (width + gap) - gap), background, np.uint8
    )
    for index, image in enumerate(images):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def _write(images: np.ndarray, head: bytes) -> list[bytes]:
    count, channels, height, width = images.shape
    # all scan lines of the batch at once: a filter byte (0 = none), then the interleaved channels
    lines = np.empty((count, height, width * channels + 1), np.uint8)
    lines[:, :, 0] = 0
    for channel in range(channels):
        lines[:, :, 1 + channel :: channels] = images[:, channel]
    level = 0 if height * width <= FAST_PIXELS else 1
    return [head + _chunk(b"IDAT", isal_zlib.compress(image, level)) + _IEND for image in lines]


def _chunk(kind: bytes, body: bytes) -> bytes:
    tagged = kind + body
    return b"%b%b%b" % (struct.pack(">I", len(body)), tagged, struct.pack(">I", isal_zlib.crc32(tagged)))


def _head(width: int, height: int, colour: int) -> bytes:
    return _SIGNATURE + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))


_IEND = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
