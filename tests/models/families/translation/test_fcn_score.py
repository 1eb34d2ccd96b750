"""What can be read back of translations: all of true ones, little of a constant, and it is in the result when asked."""

import pytest
import torch

from models.data import Columns
from models.families.translation.fcn_score import downstream_score
from models.families.translation.pix2pix import Pix2Pix
from models.training.loop import Training
from models.types import DataSpec


def pairs(count: int, seed: int) -> Columns:
    """Grey squares of one value, and the same inverted."""
    values = torch.randint(256, (count, 1, 1, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    images = values.expand(-1, 1, 8, 8).contiguous()
    return Columns({"input": images.numpy(), "target": (255 - images).numpy()})


def test_the_truth_is_read_better_than_a_constant_and_the_mean():
    train, validation = pairs(64, 0), pairs(32, 1)
    given = train, validation, "input", "target", 0, torch.device("cpu"), 150
    truth = downstream_score(lambda images: 1 - images, *given)
    empty = downstream_score(torch.zeros_like, *given)
    assert truth["downstream_l1"] == pytest.approx(truth["downstream_real_l1"], rel=1e-4)
    assert truth["downstream_l1"] < 0.5 * truth["downstream_mean_l1"] < empty["downstream_l1"]


def test_it_is_in_the_result_when_asked_for():
    columns = {"train": {"input": 16, "target": 16}, "validation": {"input": 8, "target": 8}}
    spec = DataSpec("paired", 8, 8, 1, columns=columns)
    config = {"images": 4, "batch_size": 2, "width": 4, "downstream": True, "direction": "both"}
    training = Training(Pix2Pix.create(config, spec), pairs(16, 0), pairs(8, 1))
    list(training.run())
    measured = training.finish()
    for name in ("downstream_l1", "downstream_real_l1", "downstream_mean_l1"):
        assert {f"ab_{name}", f"ba_{name}"} <= measured.keys()
