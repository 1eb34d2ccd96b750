"""Frames on the pipes between a room and its child: plain values and numpy arrays. Never pickles.

A frame is the length of its head (8 bytes, little-endian), the head, then large parts: the bytes of its arrays and long
byte strings. The head is msgpack: [sizes of the parts], then the value, where a part is the extension ARRAY with
[index, type, shape] or BYTES with [index].
"""

import math
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

ARRAY, BYTES = 1, 2
KINDS = "biufc"
"""Kinds of numpy types that travel: numbers and truth values, never objects or text."""
HEAD_BYTES = 32 << 20
"""Longest head: small values take many times their size in memory once they are read."""
SHORT = 1 << 12
LENGTH = struct.Struct("<Q")
Fill = Callable[[memoryview], None]
"""Fills a buffer with the next bytes of the pipe."""


class Damaged(ValueError):
    """The other side wrote something that is no frame, or a frame above the limit."""


def pack(value: Any) -> list[memoryview]:
    """The buffers of a frame, in order. `value`: None, numbers, text, bytes, arrays, and lists and dicts of them."""
    parts: list[memoryview] = []

    def extension(item: Any) -> msgpack.ExtType:
        if isinstance(item, np.generic):
            item = np.asarray(item)
        if not isinstance(item, np.ndarray) or item.dtype.kind not in KINDS:
            raise TypeError(f"cannot send a {type(item).__name__}")
        parts.append(memoryview(np.ascontiguousarray(item).reshape(-1).view(np.uint8)))
        return msgpack.ExtType(ARRAY, msgpack.packb([len(parts) - 1, item.dtype.str, item.shape]))

    def without_long_bytes(item: Any) -> Any:
        if isinstance(item, bytes) and len(item) > SHORT:
            parts.append(memoryview(item))
            return msgpack.ExtType(BYTES, msgpack.packb([len(parts) - 1]))
        if isinstance(item, dict):
            return {key: without_long_bytes(each) for key, each in item.items()}
        return [without_long_bytes(each) for each in item] if isinstance(item, list | tuple) else item

    packed = msgpack.packb(without_long_bytes(value), default=extension)
    head = msgpack.packb([part.nbytes for part in parts]) + packed
    if len(head) > HEAD_BYTES:
        raise ValueError(f"the value has more than {HEAD_BYTES} bytes beside its arrays")
    return [memoryview(LENGTH.pack(len(head)) + head), *(part for part in parts if part.nbytes)]


def read(fill: Fill, limit: int) -> Any:
    """The value of the next frame. Raises Damaged; never allocates more than `limit` bytes for arrays."""
    (size,) = LENGTH.unpack(_filled(fill, LENGTH.size))
    if size > min(limit, HEAD_BYTES):
        raise Damaged("the head is longer than allowed")
    try:
        unpacker = msgpack.Unpacker(ext_hook=_Part, strict_map_key=False, max_buffer_size=max(size, 1))
        unpacker.feed(_filled(fill, size))
        sizes, value = unpacker.unpack(), unpacker.unpack()
        if not all(isinstance(each, int) and each >= 0 for each in sizes) or sum(sizes) > limit:
            raise Damaged("the arrays are larger than allowed")
        parts: dict[int, _Part] = {}
        _collect(value, sizes, parts)
        if len(parts) != len(sizes):
            raise Damaged("a part is not used")
    except (ValueError, TypeError, IndexError, AttributeError, msgpack.UnpackException, RecursionError) as error:
        raise Damaged(str(error)[:200]) from None
    contents = {index: parts[index].content(_filled(fill, sizes[index])) for index in sorted(parts)}
    return _complete(value, contents)


class _Part:
    """A part before its bytes are read. `dtype` is None for a byte string."""

    def __init__(self, code: int, data: bytes):
        if code not in (ARRAY, BYTES):
            raise Damaged(f"unknown extension {code}")
        self.index, *kind = msgpack.unpackb(data)
        self.dtype, self.shape = (np.dtype(kind[0]), tuple(map(int, kind[1]))) if code == ARRAY else (None, None)

    def content(self, data: bytearray) -> np.ndarray | bytes:
        return bytes(data) if self.dtype is None else np.frombuffer(data, self.dtype).reshape(self.shape)

    def require(self, size: int) -> None:
        """Raises Damaged unless `size` bytes are an array of numbers of this type and shape."""
        if self.dtype is None:
            return
        if self.dtype.kind not in KINDS or min(self.shape, default=0) < 0:
            raise Damaged("not an array of numbers")
        if math.prod(self.shape) * self.dtype.itemsize != size:
            raise Damaged("an array of another size than announced")


def _collect(value: Any, sizes: list[int], parts: dict[int, _Part]) -> None:
    """Puts the parts in `value` into `parts`, by index."""
    if isinstance(value, _Part):
        if value.index in parts:
            raise Damaged("a part is used twice")
        value.require(sizes[value.index])
        parts[value.index] = value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _collect(item, sizes, parts)


def _complete(value: Any, contents: dict[int, Any]) -> Any:
    if isinstance(value, _Part):
        return contents[value.index]
    if isinstance(value, dict):
        return {key: _complete(item, contents) for key, item in value.items()}
    return [_complete(item, contents) for item in value] if isinstance(value, list) else value


def _filled(fill: Fill, size: int) -> bytearray:
    buffer = bytearray(size)
    fill(memoryview(buffer))
    return buffer
