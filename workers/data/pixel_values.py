"""Turns the numbers of an uploaded array into 8-bit pixels: finds the channel axis and the value range."""

from collections.abc import Callable, Iterator

import numpy as np

from app.core.errors import InvalidDataset
from app.core.settings import settings
from workers.codecs import to_uint8
from workers.data.npz import Array


def pixels(array: Array) -> Iterator[np.ndarray]:
    """Yields each image as uint8 (C, H, W)."""
    channels_first, to_8_bits = _channels_first(array), _to_8_bits(array)
    for piece in array.slices():
        yield from np.ascontiguousarray(channels_first(to_8_bits(piece)))


def masks(array: Array) -> Iterator[np.ndarray]:
    """Yields each mask as uint8 (H, W) of class indices."""
    if array.dtype.kind not in "bui" or array.shape[3:] not in ((), (1,)) or len(array.shape) < 3:
        raise InvalidDataset(
            f"The array {array.name} must hold whole numbers from 0 to 255 of shape (N, height, width); it holds "
            f"{array.dtype} of shape {list(array.shape)}."
        )
    for piece in array.slices():
        if piece.size and (piece.min() < 0 or piece.max() > 255):
            raise InvalidDataset(
                f"The array {array.name} has values from {piece.min()} to {piece.max()}, outside 0 to 255."
            )
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
            f"The array {array.name} has the shape {list(shape)}; it must be (N, height, width), "
            "(N, height, width, channels) or (N, channels, height, width) with 1 or 3 channels."
        )
    limits = settings()
    if max(size) > limits.max_side or size[0] * size[1] > limits.max_pixels:
        raise InvalidDataset(
            f"The images in {array.name} are {size[0]} x {size[1]} pixels (height x width); sides of at most "
            f"{limits.max_side} and {limits.max_pixels} pixels are allowed."
        )
    return move


def _to_8_bits(array: Array) -> Callable[[np.ndarray], np.ndarray]:
    """The function from numbers to 0..255. Reads the whole array for its range, unless it is uint8 or boolean."""
    if array.dtype == np.uint8:
        return lambda piece: piece
    if array.dtype.kind == "b":
        return lambda piece: piece.astype(np.uint8) * 255
    if array.dtype.kind not in "uif":
        raise InvalidDataset(f"The array {array.name} does not hold numbers but {array.dtype}.")
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
        f"The array {array.name} has values from {low:g} to {high:g}; allowed are 0 to 255, 0.0 to 1.0 and uint16.",
        remedy="Save uint8; for values in [-1, 1] use ((images + 1) * 127.5).astype(numpy.uint8).",
    )


def _range(array: Array) -> tuple[float, float]:
    pieces = [(piece.min(), piece.max()) for piece in array.slices() if piece.size]
    # numpy's min and max keep NaN, Python's do not
    return (float(np.min([p[0] for p in pieces])), float(np.max([p[1] for p in pieces]))) if pieces else (0.0, 0.0)
