"""What the tiles of one image share: the statistics that instance norms would find in it, were it in one piece.

Normalised each by itself, tiles disagree where they meet, and a tile of plain sky has its grain blown up to full scale.
"""

import torch
from torch import Tensor, nn

from models.families.translation.instance_norm import measured

PART, PARTS = 256, 3
"""Statistics are those of at most 3 x 3 parts of this side, spread evenly: a larger image takes no more memory."""


def of_whole(chain: list[nn.Module], image: Tensor) -> list[Tensor]:
    """Statistics (s,) for each network of `chain`, which goes on with what the one before made of `image` (c, H, W)."""
    parts, found = spread(image), []
    for network in chain:
        parts, statistics = measured(network, parts)
        found.append(statistics)
    return found


def spread(image: Tensor) -> Tensor:
    """Parts (n, c, h, w) of an image, as large as it where it is small, over all of it where nine of them suffice."""
    ways = []
    for length in image.shape[-2:]:
        side = min(PART, length)
        count = min(PARTS, -(-length // side))
        places = torch.linspace(0, length - side, count).round().long().tolist()
        ways.append([slice(start, start + side) for start in places])
    return torch.stack([image[:, rows, columns] for rows in ways[0] for columns in ways[1]])
