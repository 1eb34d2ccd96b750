"""Bytes to arrays and back; no other code does this. Images are uint8 (C, H, W) with 1 or 3 channels, batches uint8
(N, C, H, W). Tensors are accepted wherever arrays are; torch is imported only by `to_tensor`."""

from app.core.images import Header, read_header, read_headers
from workers.codecs.decode import decode, decode_alike, decode_batch, decode_for, decode_mask, to_tensor
from workers.codecs.encode import (
    class_colours,
    coloured,
    encode,
    encode_masks,
    encode_png,
    encode_webp,
    grid,
    grid_png,
    to_uint8,
)
from workers.codecs.flatten import fit, with_channels
from workers.codecs.npy import NpyHead, decode_latents, decode_npy, encode_npy, read_npy_head

__all__ = [
    "Header",
    "NpyHead",
    "class_colours",
    "coloured",
    "decode",
    "decode_alike",
    "decode_batch",
    "decode_for",
    "decode_latents",
    "decode_mask",
    "decode_npy",
    "encode",
    "encode_masks",
    "encode_npy",
    "encode_png",
    "encode_webp",
    "fit",
    "grid",
    "grid_png",
    "read_header",
    "read_headers",
    "read_npy_head",
    "to_tensor",
    "to_uint8",
    "with_channels",
]
