"""Images of any size through a network of one size: overlapping tiles, blended so that no seam shows.

Every tile is a row like any other, so memory and batches are those of the network's own size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OVERLAP, MOST = 3 / 8, 128
"""Share of a tile that it has in common with the next, and most pixels: the context a network misses at a border."""
WHOLE = 512
"""A network that reads any size does images up to this side in one piece: what it learned at a border stays there."""
STRIDE = 16
"""Translators shrink their features: tiles that begin at multiples of this are shrunk as the whole image would be."""
LEAST = 1e-3  # weight at the very edge of a tile, so that a pixel no other tile covers is still divided by something


def starts(length: int, tile: int, step: int = 1) -> list[int]:
    """Where tiles begin along one side, evenly spread, at multiples of `step`; [0] where one is enough.

    The last is flush with the end, or reaches less than a step beyond it.
    """
    if length <= tile:
        return [0]
    stride = max(1, tile - overlap(tile))
    steps = math.ceil((length - tile) / step)
    gaps = math.ceil(steps * step / stride)
    return [round(index * steps / gaps) * step for index in range(gaps + 1)]


def overlap(tile: int) -> int:
    return min(MOST, round(tile * OVERLAP))


def widest(images: Tensor, smallest: tuple[int, int]) -> tuple[int, int]:
    """The tile for a network that reads any size: as large as the image, between `smallest` and WHOLE."""
    return tuple(max(least, min(side, WHOLE)) for least, side in zip(smallest, images.shape[-2:], strict=True))


def count(height: int, width: int, tile: tuple[int, int]) -> int:
    """Tiles of size `tile` that cover an image."""
    return len(starts(height, tile[0])) * len(starts(width, tile[1]))


def cut(images: Tensor, tile: tuple[int, int], step: int = 1) -> tuple[Tensor, Tensor]:
    """(n, c, H, W) -> tiles (n*t, c, *tile) and their places (n*t, 5): image, top, left, H, W.

    They begin at multiples of `step`; an image too small for its tiles is continued by reflection.
    """
    height, width = images.shape[-2:]
    tops, lefts = (starts(length, side, step) for length, side in zip((height, width), tile, strict=True))
    padded = _continued(images, (tops[-1] + tile[0], lefts[-1] + tile[1]))
    tiles, places = [], []
    for index, image in enumerate(padded):
        for top in tops:
            for left in lefts:
                tiles.append(image[:, top : top + tile[0], left : left + tile[1]])
                places.append((index, top, left, height, width))
    return torch.stack(tiles), torch.tensor(places)


def join(tiles: Tensor, places: Tensor) -> Tensor:
    """The images (n, c, H, W) that `cut` would cut into these tiles; where tiles overlap, their weighted mean."""
    *_, height, width = places[0].tolist()
    side = tiles.shape[-2:]
    if len(tiles) == int(places[-1, 0]) + 1:  # one tile each: no weighing, not a bit changes
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


def _continued(images: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = images.shape[-2:]
    bottom, right = max(0, size[0] - height), max(0, size[1] - width)
    if not bottom and not right:
        return images
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode)


def _window(side: tuple[int, int]) -> Tensor:
    """Weights (h, w): 1 inside, falling to almost nothing over the overlap."""
    sides = []
    for length in side:
        ramp = max(1, overlap(length))
        distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
        sides.append((distance / ramp).clamp(max=1).mul(math.pi / 2).sin().square().clamp(min=LEAST))
    return sides[0][:, None] * sides[1]
