"""What the tiles of one image share: the statistics that instance norms would find in it, were it in one piece.

Normalised each by itself, tiles disagree where they meet, and a tile of plain sky has its grain blown up to full scale.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.norms import measured, normalised, norms, pooled
from models.tiling import WHOLE, starts

SIDE = 3
"""Along each side at most so many tiles are measured, spread evenly: a larger image takes no longer."""


@torch.no_grad()
def of_whole(chain: list[nn.Module], image: Tensor, tile: tuple[int, int]) -> list[Tensor]:
    """For each network of `chain`, which goes on with what the one before made of `image` (c, H, W): statistics (s,).

    A small copy of the image passes first; under its statistics those of tiles at full size are taken and pooled.
    """
    small, tiles, found = _small(image[None]), _spread(image, tile), []
    for network in chain:
        small, rough = measured(network, small)
        parts = torch.cat([measured(network, part, rough)[1] for part in tiles])
        exact = pooled(parts, [norm.num_features for norm in norms(network)])
        found.append(exact)
        if len(found) < len(chain):
            with normalised(network, exact[None]):
                tiles = [network(part) for part in tiles]
    return found


def _small(images: Tensor) -> Tensor:
    scale = WHOLE / max(images.shape[-2:])
    if scale >= 1:
        return images
    return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)


def _spread(image: Tensor, tile: tuple[int, int]) -> list[Tensor]:
    """Tiles (1, c, h, w) of an image at least as large as one of them along each side, or as the image is."""
    ways = []
    for length, side in zip(image.shape[-2:], tile, strict=True):
        places = starts(length, side)
        chosen = torch.linspace(0, len(places) - 1, min(SIDE, len(places))).round().long().tolist()
        ways.append([slice(places[index], places[index] + side) for index in chosen])
    return [image[None, :, rows, columns] for rows in ways[0] for columns in ways[1]]
