"""Unpaired translation scored on twins, and the contrast between patches."""

import pytest
import torch

from models.data import Columns
from models.evaluation import translation
from models.families.translation.cut import patch_nce
from models.registry import families
from models.training.loop import Training
from models.types import DataSpec
from tests.models.data import dataset


def unit(*shape: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=draws), dim=-1)


def test_patch_nce_is_the_cross_entropy_of_finding_ones_own_place():
    keys = unit(2, 5, 7)
    queries = unit(2, 5, 7).roll(1, 2)
    expected = 0.0
    for image in range(2):
        for place in range(5):
            scores = (keys[image] @ queries[image, place]) / 0.3
            expected -= float(scores[place] - scores.logsumexp(0)) / 10
    assert float(patch_nce(queries, keys, 0.3)) == pytest.approx(expected, rel=1e-5)


def test_patch_nce_prefers_patches_that_stay_in_place():
    vectors = unit(1, 64, 32)
    assert patch_nce(vectors, vectors, 0.07) < 0.1 < patch_nce(vectors.roll(1, 1), vectors, 0.07)


@pytest.mark.parametrize("name", ["cyclegan", "cut"])
def test_with_twins_a_translation_is_scored_beside_what_needs_no_learning(name):
    spec, train, validation = dataset("unpaired", (1, 16, 16))
    count = min(len(validation.columns["a"]), len(validation.columns["b"]))
    validation = Columns({side: validation.columns[side][:count] for side in "ab"})
    config = {"images": 4, "batch_size": 2, "width": 4}
    for twins in (False, True):
        data = DataSpec(spec.layout, spec.height, spec.width, spec.channels, columns=spec.columns, twins=twins)
        training = Training(families()[name].create(config, data), train, validation)
        list(training.run())
        measured = training.finish()
        prefix = "ab_" if name == "cyclegan" else ""
        wanted = {f"{prefix}{kind}l1" for kind in ("", "copy_", "mean_", "colour_")}
        assert (wanted <= measured.keys()) == twins
        assert f"{prefix}moved_l1" in measured
    copy = (validation.head(999)["a"] - validation.head(999)["b"]).abs().mean()
    assert measured[f"{prefix}copy_l1"] == pytest.approx(float(copy), rel=1e-5)


def test_colour_transfer_gives_the_mean_and_spread_of_the_target():
    source, target = torch.rand(20, 3, 8, 8) * 0.4 + 0.3, torch.rand(20, 3, 8, 8) * 0.2 + 0.5
    moved = translation.colour_transfer(source, source, target)
    torch.testing.assert_close(moved.mean((0, 2, 3)), target.mean((0, 2, 3)))
    torch.testing.assert_close(moved.std((0, 2, 3)), target.std((0, 2, 3)))


def test_a_sample_spreads_over_the_column_and_keeps_rows_together():
    column = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1)
    rows = translation.evenly_spaced(Columns({"input": column, "target": column.flip(0)}), 5)
    assert (rows["input"] * 255).flatten().round().tolist() == [0, 25, 50, 74, 99]
    torch.testing.assert_close(rows["input"] + rows["target"], torch.full((5, 1, 1, 1), 99 / 255))
