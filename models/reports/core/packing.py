"""Records of a report as plain JSON, so that a checkpoint can hold them: hits as bits, images as text."""

import base64
import zlib
from typing import Any

import torch
from torch import Tensor


def packed(hits: Tensor) -> list[int]:
    """(N, E) bool -> N numbers whose bit e says hits[:, e]."""
    return [sum(1 << place for place, hit in enumerate(row) if hit) for row in hits.tolist()]


def unpacked(numbers: list[int], columns: int) -> Tensor:
    return torch.tensor([[bool(number >> place & 1) for place in range(columns)] for number in numbers])


def joined(records: list[dict[str, Any]], what: str) -> list:
    return [value for record in records for value in record[what]]


def compressed(images: Tensor) -> str:
    """8-bit images as text that a checkpoint can hold."""
    return base64.b64encode(zlib.compress((images * 255).round().byte().cpu().numpy().tobytes(), 9)).decode()


def restored(text: str, shape: tuple[int, int, int]) -> Tensor:
    data = torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)
    return data.view(-1, *shape) / 255
