"""Pixels between decoding and encoding: number of channels, size, and the one way from floats to 8 bits."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

    Images = np.ndarray | torch.Tensor


def to_uint8(images: "Images") -> np.ndarray:
    """Floats in [0, 1] to the nearest of the 256 levels (outside is clipped, NaN is black); uint8 stays as it is."""
    if isinstance(images, np.ndarray):
        if images.dtype == np.uint8:
            return images
        return np.rint(np.nan_to_num(np.clip(images, 0, 1)) * 255).astype(np.uint8)
    if images.is_floating_point():
        # quantised where the tensor lives: a quarter of the bytes leave the accelerator
        images = images.detach().nan_to_num().mul(255).round_().clamp_(0, 255).byte()
    return images.cpu().numpy()


def to_tensor(images: np.ndarray) -> "torch.Tensor":
    """uint8 images as float32 in [0, 1], the range of every border inside."""
    import torch

    return torch.from_numpy(images).to(torch.float32).div_(255)


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Gray to three equal channels, colour to luma; axis -3 is the channel."""
    given = image.shape[-3]
    if given == channels:
        return image
    if given == 1:
        return np.repeat(image, channels, axis=-3)
    red, green, blue = np.moveaxis(image.astype(np.uint32), -3, 0)
    # ITU-R 601-2 in 16 bits of fraction, to the bit what Pillow's convert("L") gives
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None, :, :]


def fit(image: np.ndarray, height: int, width: int, *, nearest: bool = False) -> np.ndarray:
    """Scales (C, H, W) or a mask (H, W) to the size; other proportions are cropped in the middle, never squeezed."""
    given_height, given_width = image.shape[-2:]
    if (given_height, given_width) == (height, width):
        return image
    scale = min(given_height / height, given_width / width)
    top, left = (given_height - height * scale) / 2, (given_width - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    # Pillow's bicubic widens its kernel when it shrinks, so nothing aliases
    kernel = Image.Resampling.NEAREST if nearest else Image.Resampling.BICUBIC
    if image.ndim == 2:
        return np.asarray(Image.fromarray(image).resize((width, height), kernel, box))
    bands = [np.asarray(Image.fromarray(band).resize((width, height), kernel, box)) for band in image]
    return np.stack(bands)
