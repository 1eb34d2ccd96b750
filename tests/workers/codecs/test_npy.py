"""Latents as npy: exact ways out and in, and what is refused."""

import io

import numpy as np
import pytest
import torch

from app.core.errors import InvalidRequest
from workers import codecs


def npy(array: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_what_is_written_can_be_read_by_numpy_and_by_us():
    codes = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    data = codecs.encode_npy(codes)
    assert (np.load(io.BytesIO(data)) == codes.numpy()).all()
    assert (codecs.decode_npy(data, (None, 7)) == codes.numpy()).all()


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "<i8", "|u1", ">i2"])
def test_numbers_of_any_kind_become_float32(dtype):
    array = np.array([[1, 2, 3], [4, 5, 6]])
    for order in "CF":
        decoded = codecs.decode_npy(npy(np.array(array, dtype, order=order)))
        assert decoded.dtype == np.float32 and decoded.flags.c_contiguous and (decoded == array).all()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "not an npy file"),
        (b"\x93NUMPY\1\0", "not an npy file"),
        (npy(np.zeros((2, 3), np.float32))[:-1], "shorter or longer"),
        (npy(np.zeros((2, 3), np.float32)) + b"!", "shorter or longer"),
        (npy(np.full((1, 3), np.nan)), "NaN"),
        (npy(np.full((1, 3), 1e300)), "infinite"),
        (npy(np.array([{"a": 1}]), allow_pickle=True), "numbers"),
        (npy(np.array(["a"])), "numbers"),
        (npy(np.zeros((2, 4))), r"shape \(any, 3\); it has \[2, 4\]"),
        (npy(np.zeros(3)), r"it has \[3\]"),
        (npy(np.zeros((1, 3))).replace(b"(1, 3)", b"(-1,3)"), "not an npy file"),
        (npy(np.zeros((1, 3))).replace(b"(1, 3), ", b"(9**9,3)"), "not an npy file"),
        (npy(np.zeros((1, 3))).replace(b"(1, 3), }      ", b"(99999999, 3), }"), "shorter or longer"),
    ],
)
def test_anything_else_is_refused(data, sentence):
    with pytest.raises(InvalidRequest, match=sentence):
        codecs.decode_npy(data, (None, 3))


def test_codes_of_another_length_are_told_apart_whatever_they_came_in():
    codes = codecs.encode_npy(np.zeros((2, 5)))
    assert codecs.decode_latents(codes, 5).shape == (2, 5)
    with pytest.raises(InvalidRequest, match="codes of 7 numbers; you sent codes of 5") as refused:
        codecs.decode_latents(codes, 7)
    assert refused.value.field == "latents" and "file" not in refused.value.detail
