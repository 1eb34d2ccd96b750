"""npy files: latent codes as float32 rows, and the header of any array. Pickles are never read."""

import io
import math
from functools import lru_cache
from typing import IO, NamedTuple

import numpy as np

from app.core.errors import InvalidRequest


class NpyHead(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def read_npy_head(stream: IO[bytes]) -> NpyHead:
    """Reads the header and leaves the stream at the first number. Raises any error of numpy's parser."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    head = NpyHead(*read(stream))
    if any(length < 0 for length in head.shape):
        raise ValueError("negative length")
    return head


def encode_npy(array) -> bytes:
    """An array or tensor as a float32 npy file."""
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu().numpy()
    return _head(array.shape) + np.ascontiguousarray(array, dtype="<f4").tobytes()


@lru_cache(maxsize=1024)
def _head(shape: tuple[int, ...]) -> bytes:
    """The bytes before the numbers, cached: writing them takes longer than the rest of a small array."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)})
    return file.getvalue()


def decode_npy(data: bytes, shape: tuple[int | None, ...] | None = None, field: str = "latents") -> np.ndarray:
    """Reads an npy file of finite numbers as float32; `None` in `shape` allows any length there."""
    stream = io.BytesIO(data)
    try:
        head = read_npy_head(stream)
    except Exception as error:
        raise InvalidRequest("The body is not an npy file.", field=field, remedy="Write it with numpy.save.") from error
    if head.dtype.kind not in "fiu":
        raise InvalidRequest(f"The npy file must hold numbers; it holds {head.dtype}.", field=field)
    if len(data) - stream.tell() != head.bytes:
        raise InvalidRequest("The npy file is shorter or longer than its header says.", field=field)
    if shape and not _allowed(head.shape, shape):
        needed = ", ".join("any" if length is None else str(length) for length in shape)
        raise InvalidRequest(f"The npy file must have the shape ({needed}); it has {list(head.shape)}.", field=field)
    array = np.frombuffer(data, head.dtype, offset=stream.tell()).reshape(head.shape, order="CF"[head.fortran])
    with np.errstate(over="ignore"):
        array = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(array).all():
        raise InvalidRequest("The npy file holds NaN or numbers that are infinite in float32.", field=field)
    return array


def decode_latents(data: bytes, width: int) -> np.ndarray:
    """Latent codes of a request, float32 (n, width). Raises InvalidRequest for another width."""
    array = decode_npy(data)
    if array.ndim != 2 or array.shape[1] != width:
        sent = array.shape[-1] if array.ndim == 2 else "x".join(map(str, array.shape))
        raise InvalidRequest(
            f"latents must be codes of {width} numbers; you sent codes of {sent}.",
            field="latents",
            remedy="Send codes from this model's encode.",
        )
    return array


def _allowed(actual: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(actual) == len(shape) and all(n in (None, m) for n, m in zip(shape, actual, strict=True))
