"""Bytes become arrays and arrays become bytes here and nowhere else. Images are uint8 (C, H, W) with 1 or 3 channels,
batches uint8 (N, C, H, W); nothing in here needs torch, though tensors are welcome wherever arrays are."""

from workers.codecs.decode import decode, decode_alike, decode_batch, decode_for, decode_mask
from workers.codecs.encode import class_colours, coloured, encode, encode_masks, encode_png, encode_webp, grid, grid_png
from workers.codecs.header import Header, read_header
from workers.codecs.npy import NpyHead, decode_latents, decode_npy, encode_npy, read_npy_head
from workers.codecs.pixels import fit, to_tensor, to_uint8, with_channels

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
    "read_npy_head",
    "to_tensor",
    "to_uint8",
    "with_channels",
]
