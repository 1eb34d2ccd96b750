"""Numbers of an uploaded array to 8-bit pixels: where the channels are, and what white is."""

from collections.abc import Callable, Iterator

import numpy as np

from app.core.errors import InvalidDataset
from app.core.settings import settings
from workers.codecs import to_uint8
from workers.data.npz import Array


def pixels(array: Array) -> Iterator[np.ndarray]:
    """uint8 (C, H, W), image by image."""
    first = _channels_first(array)
    level = _level(array)
    for piece in array.slices():
        yield from np.ascontiguousarray(first(level(piece)))


def masks(array: Array) -> Iterator[np.ndarray]:
    """uint8 (H, W) class indices."""
    if array.dtype.kind not in "bui" or array.shape[3:] not in ((), (1,)) or len(array.shape) < 3:
        raise InvalidDataset(f"The array {array.name} has to be (N, height, width) of whole numbers from 0 to 255.")
    for piece in array.slices():
        if piece.size and (piece.min() < 0 or piece.max() > 255):
            raise InvalidDataset(f"The array {array.name} has values outside 0 to 255.")
        yield from np.ascontiguousarray(piece, dtype=np.uint8).reshape(piece.shape[:3])


def _channels_first(array: Array) -> Callable[[np.ndarray], np.ndarray]:
    shape = array.shape
    if len(shape) == 3:
        size, move = shape[1:], lambda piece: piece[:, None]
    elif len(shape) == 4 and shape[3] in (1, 3):
        size, move = shape[1:3], lambda piece: np.moveaxis(piece, 3, 1)
    elif len(shape) == 4 and shape[1] in (1, 3):
        size, move = shape[2:], lambda piece: piece
    else:
        raise InvalidDataset(
            f"The array {array.name} has the shape {list(shape)}; (N, height, width), (N, height, width, channels) and "
            "(N, channels, height, width) with 1 or 3 channels are read."
        )
    limits = settings()
    if max(size) > limits.max_side or size[0] * size[1] > limits.max_pixels:
        raise InvalidDataset(f"The images in {array.name} are {size[0]} x {size[1]} pixels, which is too large.")
    return move


def _level(array: Array) -> Callable[[np.ndarray], np.ndarray]:
    """How the numbers become 0..255; but for uint8 and booleans this takes a look at all of them first."""
    if array.dtype == np.uint8:
        return lambda piece: piece
    if array.dtype.kind == "b":
        return lambda piece: piece.astype(np.uint8) * 255
    if array.dtype.kind not in "uif":
        raise InvalidDataset(f"The array {array.name} does not hold numbers.")
    low, high = _range(array)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InvalidDataset(f"The array {array.name} holds NaN or infinity.")
    if low >= 0 and high <= 1 and array.dtype.kind == "f":
        return to_uint8
    if low >= 0 and high <= 255:
        return lambda piece: np.rint(piece).astype(np.uint8)
    if array.dtype == np.uint16:
        return lambda piece: (piece >> 8).astype(np.uint8)
    raise InvalidDataset(
        f"The array {array.name} has values from {low:g} to {high:g}; 0 to 255, 0.0 to 1.0 and 16 bits are read.",
        remedy="Save uint8. Values in [-1, 1] become that by (images + 1) * 127.5.",
    )


def _range(array: Array) -> tuple[float, float]:
    pieces = [(piece.min(), piece.max()) for piece in array.slices() if piece.size]
    # NaN survives min() and max() of an array, but not those of Python
    return (float(np.min([p[0] for p in pieces])), float(np.max([p[1] for p in pieces]))) if pieces else (0.0, 0.0)
