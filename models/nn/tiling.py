"""Runs a network of one size on images of any size: overlapping tiles, blended at their borders.

A tile is a row of a batch like any image, so memory does not grow with the image.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OVERLAP, MAX_OVERLAP = 3 / 8, 128
"""Overlap of neighbouring tiles, as a fraction of a tile and at most in pixels: the context missing at a border."""
WHOLE = 512
"""Networks for any size run images up to this side in one piece."""
STRIDE = 16
"""Tiles for translation start at multiples of this, so that their features are downsampled like the whole image's."""
MIN_WEIGHT = 1e-3  # at the edge of a tile: a pixel of one tile only must not be divided by zero


def starts(length: int, tile: int, step: int = 1) -> list[int]:
    """The first pixel of each tile along a side of `length`: evenly spaced multiples of `step`, [0] if one is enough.

    The last tile ends at the end of the side, or less than `step` beyond it.
    """
    if length <= tile:
        return [0]
    stride = max(1, tile - overlap(tile))
    steps = math.ceil((length - tile) / step)
    gaps = math.ceil(steps * step / stride)
    return [round(index * steps / gaps) * step for index in range(gaps + 1)]


def overlap(tile: int) -> int:
    return min(MAX_OVERLAP, round(tile * OVERLAP))


def widest(images: Tensor, smallest: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the tiles for a network for any size: those of the images, between `smallest` and WHOLE."""
    return tuple(max(least, min(side, WHOLE)) for least, side in zip(smallest, images.shape[-2:], strict=True))


def count(height: int, width: int, tile: tuple[int, int]) -> int:
    """The number of tiles of size `tile` that cover an image."""
    return len(starts(height, tile[0])) * len(starts(width, tile[1]))


def cut(images: Tensor, tile: tuple[int, int], step: int = 1) -> tuple[Tensor, Tensor]:
    """Images (n, c, H, W) -> tiles (n*t, c, *tile) and their places (n*t, 5): image, top, left, H, W.

    Tiles start at multiples of `step`; an image smaller than its tiles is padded by reflection.
    """
    height, width = images.shape[-2:]
    tops, lefts = (starts(length, side, step) for length, side in zip((height, width), tile, strict=True))
    padded = _padded(images, (tops[-1] + tile[0], lefts[-1] + tile[1]))
    tiles, places = [], []
    for index, image in enumerate(padded):
        for top in tops:
            for left in lefts:
                tiles.append(image[:, top : top + tile[0], left : left + tile[1]])
                places.append((index, top, left, height, width))
    return torch.stack(tiles), torch.tensor(places)


def join(tiles: Tensor, places: Tensor) -> Tensor:
    """The inverse of `cut`: images (n, c, H, W), the weighted mean of the tiles where they overlap."""
    *_, height, width = places[0].tolist()
    side = tiles.shape[-2:]
    if len(tiles) == int(places[-1, 0]) + 1:  # one tile per image: returned unchanged, bit for bit
        return tiles[..., :height, :width]
    size = [int(places[:, axis].max()) + length for axis, length in zip((1, 2), side, strict=True)]
    window = _window(side).to(tiles)
    total = torch.zeros(int(places[-1, 0]) + 1, tiles.shape[1], *size).to(tiles)
    weight = torch.zeros(1, *size).to(tiles)
    for tile, (index, top, left, *_) in zip(tiles, places.tolist(), strict=True):
        rows, columns = slice(top, top + side[0]), slice(left, left + side[1])
        total[index, :, rows, columns] += tile * window
        if index == 0:
            weight[:, rows, columns] += window
    return (total / weight)[..., :height, :width]


def _padded(images: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = images.shape[-2:]
    bottom, right = max(0, size[0] - height), max(0, size[1] - width)
    if not bottom and not right:
        return images
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode)


def _window(side: tuple[int, int]) -> Tensor:
    """Weights (h, w): 1 inside, sin^2 from 1 down to MIN_WEIGHT over the overlap."""
    sides = []
    for length in side:
        ramp = max(1, overlap(length))
        distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
        sides.append((distance / ramp).clamp(max=1).mul(math.pi / 2).sin().square().clamp(min=MIN_WEIGHT))
    return sides[0][:, None] * sides[1]
