"""Latent codes as npy: float32, little-endian, row by row. No pickle is ever read."""

import io

import numpy as np

from app.core.errors import InvalidRequest


def encode_npy(array) -> bytes:
    """An array or tensor as a float32 npy file."""
    if not isinstance(array, np.ndarray):
        array = array.detach().cpu().numpy()
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array, dtype="<f4"), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_npy(data: bytes, shape: tuple[int | None, ...] | None = None, field: str = "latents") -> np.ndarray:
    """Reads an npy file of numbers as float32; `None` in `shape` allows any length there."""
    try:
        dtype, given, fortran, start = _read_head(data)
    except Exception as error:  # numpy's header parser raises whatever its syntax tree meets
        raise InvalidRequest("The body is not an npy file.", field=field, remedy="Write it with numpy.save.") from error
    if dtype.kind not in "fiu":
        raise InvalidRequest(f"The npy file holds {dtype.name}; numbers are needed.", field=field)
    if len(data) - start != dtype.itemsize * _product(given):
        raise InvalidRequest("The npy file is shorter or longer than its header says.", field=field)
    if shape and (len(shape) != len(given) or any(n not in (None, m) for n, m in zip(shape, given, strict=True))):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise InvalidRequest(f"The npy file has the shape {list(given)}; ({wanted}) is needed.", field=field)
    array = np.frombuffer(data, dtype, offset=start).reshape(given, order="F" if fortran else "C")
    with np.errstate(over="ignore"):
        array = np.array(array, dtype=np.float32, order="C")
    if not np.isfinite(array).all():
        raise InvalidRequest("The npy file holds NaN or numbers that are infinite in float32.", field=field)
    return array


def _read_head(data: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return dtype, shape, fortran, file.tell()


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        if n < 0:
            return -1
        total *= n
    return total
