"""Tiles of one image are normalised alike: what comes of them is what the whole image in one piece gives."""

import torch
from torch import Tensor, nn

from models import tile_norms, tiling
from models.nn.norms import InstanceNorm, measured, normalised, pooled
from models.nn.translators import make_generator

TILE = (64, 64)


def picture() -> Tensor:
    """(3, 150, 200): plain sky above, grain below, so that statistics differ from tile to tile."""
    draws = torch.Generator().manual_seed(3)
    image = torch.linspace(0.6, 0.8, 150)[:, None].expand(3, 150, 200).clone()
    image[:, 80:] = torch.rand(3, 70, 200, generator=draws).lerp(image[:, 80:], 0.4)
    image[:, :, :90] *= 0.5
    return image


def network() -> nn.Module:
    torch.manual_seed(0)
    return make_generator("resnet", 3, 3, TILE, 8).eval().requires_grad_(False)


def test_a_norm_with_the_statistics_it_would_find_itself_changes_nothing():
    torch.manual_seed(1)
    layers = nn.Sequential(InstanceNorm(4), nn.Conv2d(4, 6, 3), InstanceNorm(6))
    images = torch.randn(3, 4, 9, 11)
    plain = layers(images)
    made, found = measured(layers, images)
    assert torch.equal(made, plain) and found.shape == (3, 2 * (4 + 6))
    with normalised(layers, found):
        torch.testing.assert_close(layers(images), plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(layers(images), plain)


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    torch.manual_seed(2)
    layers = nn.Sequential(InstanceNorm(5))
    image = torch.randn(1, 5, 8, 12) * torch.linspace(0.1, 3, 12)
    parts = torch.cat([measured(layers, part)[1] for part in image.split(4, 3)])
    torch.testing.assert_close(pooled(parts, [5]), measured(layers, image)[1][0])


def seam(made: Tensor, columns: list[int]) -> float:
    """Mean step from one column to the next at the middles of the overlaps, over that everywhere."""
    steps = (made[..., 1:] - made[..., :-1]).abs().mean((0, 1, 2))
    return float(steps[columns].mean() / steps.mean())


def test_tiles_with_shared_statistics_give_what_the_whole_image_gives(monkeypatch):
    monkeypatch.setattr(tile_norms, "WHOLE", 100)
    image, layers = picture(), network()
    whole = layers(image[None])
    tiles, places = tiling.cut(image[None], TILE)
    (shared,) = tile_norms.of_whole([layers], image, TILE)
    alone = tiling.join(layers(tiles), places)
    with normalised(layers, shared.expand(len(tiles), -1)):
        together = tiling.join(layers(tiles), places)
    away = [float((made - whole).abs().mean()) for made in (alone, together)]
    assert away[1] < away[0] / 4, away
