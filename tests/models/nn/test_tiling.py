"""Tiles: an identity comes back bit for bit or nearly, a step between tiles is spread so that no seam is left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.nn import tiling

TILE = (12, 16)


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.integers(2, 20), st.integers(2, 20))
def test_an_identity_gives_the_image_back(height, width, number, rows, columns):
    images = torch.rand(number, 2, height, width)
    tiles, places = tiling.cut(images, (rows, columns))
    assert tiles.shape[2:] == (rows, columns)
    assert len(tiles) == len(places) == number * tiling.count(height, width, (rows, columns))
    torch.testing.assert_close(tiling.join(tiles, places), images)


@pytest.mark.parametrize("size", [TILE, (5, 16), (12, 3), (1, 1)])
def test_one_tile_changes_no_bit(size):
    images = torch.rand(3, 1, *size)
    assert torch.equal(tiling.join(*tiling.cut(images, TILE)), images)


def test_tiles_that_disagree_leave_no_seam():
    """Each tile is shifted by another constant, as a network that normalises each tile alone would do."""
    images = torch.zeros(1, 1, 48, 64)
    tiles, places = tiling.cut(images, (16, 16))
    shifts = torch.rand(len(tiles), 1, 1, 1, generator=torch.Generator().manual_seed(0))
    whole = tiling.join(tiles + shifts, places)
    steps = torch.cat([whole.diff(dim=2).flatten(), whole.diff(dim=3).flatten()]).abs().max()
    # a hard border would step by up to 1; spread over an overlap of 6 pixels it is a gentle slope
    assert steps < 0.35
    assert whole.min() >= shifts.min()
    assert whole.max() <= shifts.max() + 1e-6


def test_a_network_of_any_size_gets_the_whole_image_up_to_a_limit():
    sizes = [((28, 28), (28, 28)), ((10, 40), (28, 40)), ((300, 200), (300, 200)), ((4000, 300), (512, 300))]
    for size, tile in sizes:
        assert tiling.widest(torch.empty(1, 1, *size), (28, 28)) == tile
    assert tiling.starts(512 + 384, 512) == [0, 384] and len(tiling.starts(512 + 385, 512)) == 3


def test_a_local_network_gives_what_it_gives_on_the_whole_image():
    """A mean over 3 x 3 pixels, whose edges are wrong by the border alone."""
    network = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    images = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(1))
    tiles, places = tiling.cut(images, (16, 24))
    # a tile's outermost pixels lack their neighbours; their weight is next to nothing
    torch.testing.assert_close(tiling.join(network(tiles), places), network(images), atol=0.02, rtol=0)
