"""Reads the arrays of an npz in slices, so that an upload is never in memory as a whole."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from app.core.errors import InvalidDataset, InvalidImage
from workers.codecs import NpyHead, read_npy_head
from workers.data.archive import Archive, CountedStream, Member
from workers.data.rows import printable

SLICE_BYTES = 4 << 20
MAX_WHOLE_BYTES = 1 << 30


class Array(NamedTuple):
    """The header of an npy member; `slices` and `whole` read the numbers."""

    name: str
    head: NpyHead
    member: Member
    archive: Archive

    @property
    def shape(self) -> tuple[int, ...]:
        return self.head.shape

    @property
    def dtype(self) -> np.dtype:
        return self.head.dtype

    def slices(self) -> Iterator[np.ndarray]:
        """The array along its first axis, about 4 MB at a time."""
        with _reading(self.name), self.archive.open(self.member) as stream:
            read_npy_head(stream)
            if self.head.fortran and len(self.shape) > 1:
                yield np.frombuffer(_exactly(stream, self.head.bytes), self.dtype).reshape(self.shape, order="F")
                return
            row = self.dtype.itemsize * math.prod(self.shape[1:])
            step = max(1, SLICE_BYTES // max(1, row))
            for start in range(0, self.shape[0], step):
                count = min(step, self.shape[0] - start)
                yield np.frombuffer(_exactly(stream, row * count), self.dtype).reshape(count, *self.shape[1:])

    def whole(self) -> np.ndarray:
        if self.head.bytes > MAX_WHOLE_BYTES:
            raise InvalidDataset(
                f"The array {self.name} has {self.head.bytes} bytes; at most {MAX_WHOLE_BYTES} are allowed for it."
            )
        return np.concatenate(list(self.slices())) if self.shape[0] else np.empty(self.shape, self.dtype)


def read_arrays(archive: Archive) -> Iterator[Array]:
    """The arrays of the archive. Raises InvalidDataset for any other file in it, and for pickled objects."""
    for member in archive.members:
        name = printable(member.path[-1].removesuffix(".npy"))
        with _reading(name), archive.open(member) as stream:
            head = read_npy_head(stream)
        if head.dtype.kind not in "buifUS" or not head.shape:
            raise InvalidDataset(
                f"The array {name} holds Python objects, records or a single value.",
                remedy="Save numbers or text with at least one axis.",
            )
        if head.fortran and len(head.shape) > 1 and head.bytes > MAX_WHOLE_BYTES:
            # an array in Fortran order can only be read as a whole
            raise InvalidDataset(
                f"The array {name} is in Fortran order and has {head.bytes} bytes; at most {MAX_WHOLE_BYTES} are "
                f"allowed"
                " in this order.",
                remedy="Save numpy.ascontiguousarray(array).",
            )
        yield Array(name, head, member, archive)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except InvalidImage as error:
        raise InvalidDataset(
            f"The array {name} cannot be read: it is damaged, incomplete or not an npy file.",
            remedy="Save with numpy.savez(file, images=..., labels=...).",
        ) from error


def _exactly(stream: CountedStream, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError
    return data
