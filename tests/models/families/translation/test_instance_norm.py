"""Tiles of one image are normalised alike: what comes of them is what the whole image in one piece gives."""

import torch
from torch import Tensor, nn

from models.families.translation import instance_norm
from models.families.translation.instance_norm import InstanceNorm, normalised, pooled_forward
from models.nn import tiling
from models.operations.translate import Translate
from models.registry import families
from models.types import DataSpec

TILE = (64, 64)


def picture() -> Tensor:
    """(3, 150, 200): plain sky above, grain below, so that statistics differ from tile to tile."""
    draws = torch.Generator().manual_seed(3)
    image = torch.linspace(0.6, 0.8, 150)[:, None].expand(3, 150, 200).clone()
    image[:, 80:] = torch.rand(3, 70, 200, generator=draws).lerp(image[:, 80:], 0.4)
    image[:, :, :90] *= 0.5
    return image


def test_a_norm_with_the_statistics_it_would_find_itself_changes_nothing():
    torch.manual_seed(1)
    layers = nn.Sequential(InstanceNorm(4), nn.Conv2d(4, 6, 3), InstanceNorm(6))
    image = torch.randn(1, 4, 9, 11)
    plain = layers(image)
    made, found = pooled_forward(layers, image)
    torch.testing.assert_close(made, plain, atol=1e-5, rtol=1e-4)
    assert found.shape == (2 * (4 + 6),)
    with normalised(layers, found[None]):
        torch.testing.assert_close(layers(image), plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(layers(image), plain)


def test_statistics_of_parts_are_those_of_the_whole():
    torch.manual_seed(2)
    layers = nn.Sequential(InstanceNorm(5), nn.Tanh(), InstanceNorm(5))
    image = torch.randn(1, 5, 8, 12) * torch.linspace(0.1, 3, 12)
    parts = torch.cat(image.split(4, 3))
    torch.testing.assert_close(pooled_forward(layers, parts)[1], pooled_forward(layers, image)[1])


def seam(made: Tensor, columns: list[int]) -> float:
    """Mean step from one column to the next at the middles of the overlaps, over that everywhere."""
    steps = (made[..., 1:] - made[..., :-1]).abs().mean((0, 1, 2))
    return float(steps[columns].mean() / steps.mean())


def test_tiles_of_an_image_give_what_the_whole_image_gives(monkeypatch):
    """Bounded parts speak for the whole: 9 of 64 x 64, less than it has."""
    monkeypatch.setattr(instance_norm, "PART_SIDE", 64)
    monkeypatch.setattr(tiling, "WHOLE", 64)
    spec = DataSpec("unpaired", 64, 64, 3, columns={"train": {"a": 9, "b": 9}})
    torch.manual_seed(0)
    model = families()["cyclegan"].create({"width": 8, "generator": "resnet"}, spec).eval().requires_grad_(False)
    image, operation = picture()[None], Translate()
    params = Translate.Params(direction="ab", cycle=True)
    whole = model.translate(image, "ab")
    rows = operation.rows(model, image, params)
    assert len(rows["inputs"]) > 9 and len(instance_norm.spaced_parts(image[0])) == 9
    found = operation.result(model, rows, operation.compute(model, rows, params), params)
    alone = tiling.join(model.translate(rows["inputs"], "ab"), rows["places"])
    away = [float((made - whole).abs().mean()) for made in (alone, found.images)]
    assert away[1] < away[0] / 2.5, away
    steps = [seam(made, [63, 80]) for made in (whole, alone, found.images)]
    assert abs(steps[2] - steps[0]) < 0.03 < steps[1] - steps[0], steps
