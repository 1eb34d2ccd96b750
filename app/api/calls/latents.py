"""Latent codes: from JSON lists or .npy files to the float32 .npy that workers read, and back."""

import io
import math
from typing import Any

import numpy as np

from app.core.errors import InvalidRequest

MAX_NUMBERS = 4_000_000


def latents_from_lists(value: Any) -> tuple[bytes, int, bool]:
    """(bytes of a .npy file, number of codes, whether a list of codes was sent). Raises InvalidRequest."""
    several = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    rows = value if several else [value]
    if not rows or not all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows):
        raise _malformed()
    if not all(type(number) in (int, float) for row in rows for number in row):
        raise _malformed()
    try:
        return _packed(np.array(rows, np.float64)), len(rows), several
    except (ValueError, OverflowError):
        raise _malformed() from None


def latents_from_npy(body: bytes) -> tuple[bytes, int, bool]:
    """The same from a .npy file. Its header is checked against its length before memory is allocated."""
    try:
        stream = io.BytesIO(body)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[np.lib.format.read_magic(stream)](stream)
        count = math.prod(shape)
        if dtype.kind not in "fiu" or count * dtype.itemsize != len(body) - stream.tell():
            raise ValueError("not numbers, or not as many as it says")
        array = np.frombuffer(body, dtype, count, stream.tell()).reshape(shape, order="F" if fortran else "C")
    except Exception:  # numpy's reader raises a dozen kinds
        raise InvalidRequest("The body is not a .npy file of numbers.", field="latents") from None
    if array.ndim not in (1, 2) or not array.size:
        raise _malformed()
    several = array.ndim == 2
    return _packed(array.reshape(-1, array.shape[-1]).astype(np.float64)), len(array) if several else 1, several


def lists_from_npy(npy: bytes) -> list[list[float]]:
    """Codes for JSON."""
    return np.load(io.BytesIO(npy), allow_pickle=False).tolist()


def _packed(array: np.ndarray) -> bytes:
    if array.size > MAX_NUMBERS:
        raise InvalidRequest(f"The latents have {array.size} numbers; the maximum is {MAX_NUMBERS}.", field="latents")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidRequest("Latents must be finite numbers.", field="latents")
    out = io.BytesIO()
    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
    return out.getvalue()


def _malformed() -> InvalidRequest:
    return InvalidRequest(
        "latents must be a list of codes, each a list of numbers of the same length.",
        field="latents",
        remedy='Send {"latents": [[0.1, -0.3, ...], ...]}.',
    )
