"""Frames on the pipes between a room and its child: plain values and numpy arrays. Never pickles.

A frame is the length of its head (8 bytes, little-endian), the head, then the bytes of its arrays. The head is msgpack:
[sizes of the arrays in bytes, value], where an array is the extension ARRAY with [type, shape, index].
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

ARRAY = 1
KINDS = "biufc"
"""Kinds of numpy types that travel: numbers and truth values, never objects or text."""
LENGTH = struct.Struct("<Q")
Fill = Callable[[memoryview], None]
"""Fills a buffer with the next bytes of the pipe."""


class Damaged(ValueError):
    """The other side wrote something that is no frame, or a frame above the limit."""


def pack(value: Any) -> list[memoryview]:
    """The buffers of a frame, in order. `value`: None, numbers, text, bytes, arrays, and lists and dicts of them."""
    arrays: list[np.ndarray] = []

    def extension(item: Any) -> msgpack.ExtType:
        if isinstance(item, np.generic):
            item = np.asarray(item)
        if not isinstance(item, np.ndarray) or item.dtype.kind not in KINDS:
            raise TypeError(f"cannot send a {type(item).__name__}")
        arrays.append(np.ascontiguousarray(item))
        return msgpack.ExtType(ARRAY, msgpack.packb([item.dtype.str, item.shape, len(arrays) - 1]))

    packed = msgpack.packb(value, default=extension)
    head = msgpack.packb([array.nbytes for array in arrays]) + packed
    buffers = [memoryview(array.reshape(-1)).cast("B") for array in arrays if array.nbytes]
    return [memoryview(LENGTH.pack(len(head)) + head), *buffers]


def read(fill: Fill, limit: int) -> Any:
    """The value of the next frame. Raises Damaged; never allocates more than `limit` bytes for it."""
    (size,) = LENGTH.unpack(_filled(fill, LENGTH.size, limit))
    head = _filled(fill, size, limit)
    try:
        unpacker = msgpack.Unpacker(ext_hook=lambda code, data: _Place(code, data), strict_map_key=False,
                                    max_buffer_size=max(size, 1))  # fmt: skip
        unpacker.feed(head)
        sizes, value = unpacker.unpack(), unpacker.unpack()
        if not all(isinstance(each, int) and each >= 0 for each in sizes) or size + sum(sizes) > limit:
            raise Damaged("the arrays are larger than allowed")
        places: list[np.ndarray | None] = [None] * len(sizes)
        arrays = _arrays(value, sizes, places)
    except (ValueError, TypeError, IndexError, AttributeError, msgpack.UnpackException, RecursionError) as error:
        raise Damaged(str(error)[:200]) from None
    for array in places:
        if array is not None and array.nbytes:
            fill(memoryview(array.reshape(-1)).cast("B"))
    return arrays


class _Place:
    """Where an array belongs, before its bytes are read."""

    def __init__(self, code: int, data: bytes):
        if code != ARRAY:
            raise Damaged(f"unknown extension {code}")
        kind, self.shape, self.index = msgpack.unpackb(data)
        self.dtype = np.dtype(kind)


def _arrays(value: Any, sizes: list[int], places: list[np.ndarray | None]) -> Any:
    """`value` with empty arrays in place of `_Place`; `places` collects them by index."""
    if isinstance(value, _Place):
        shape = tuple(int(side) for side in value.shape)
        if value.dtype.kind not in KINDS or min(shape, default=0) < 0 or places[value.index] is not None:
            raise Damaged("not an array of numbers")
        if math.prod(shape) * value.dtype.itemsize != sizes[value.index]:
            raise Damaged("an array of another size than announced")
        places[value.index] = np.empty(shape, value.dtype)
        return places[value.index]
    if isinstance(value, dict):
        return {key: _arrays(item, sizes, places) for key, item in value.items()}
    if isinstance(value, list):
        return [_arrays(item, sizes, places) for item in value]
    return value


def _filled(fill: Fill, size: int, limit: int) -> bytearray:
    if size > limit:
        raise Damaged(f"{size} bytes where {limit} are allowed")
    buffer = bytearray(size)
    fill(memoryview(buffer))
    return buffer
