"""A reader of labels in two domains: it learns the bent form of what it is sure of, and ignores what it is not."""

import pytest
import torch

from models.families.refiner.label_reader import LabelReader
from models.nn.augment import elastic_warp


def test_only_confident_pseudo_labels_count_and_not_at_the_start():
    torch.manual_seed(0)
    reader = LabelReader((1, 12, 12), 2, alike=False)
    simulated, labels, real = torch.rand(4, 1, 12, 12), torch.tensor([0, 1, 0, 1]), torch.rand(6, 1, 12, 12)

    def loss(progress: float) -> float:
        return float(reader.loss(simulated, labels, real, progress, torch.Generator().manual_seed(1)).detach())

    assert loss(0.0) == loss(1.0)  # a new reader is sure of nothing
    with torch.no_grad():
        reader.body.last.weight.mul_(300)
    assert loss(0.0) < loss(0.1) < loss(0.2) == loss(1.0)


def test_alignment_corrects_a_class_that_absorbs_its_neighbour():
    """A reader that finds 0 everywhere, a little less so in half of the real images: these are the ones of class 1."""
    torch.manual_seed(0)
    reader, draws = LabelReader((1, 12, 12), 2), torch.Generator().manual_seed(1)
    real = torch.cat([torch.zeros(8, 1, 12, 12), torch.ones(8, 1, 12, 12)])
    reader.forward = lambda images: torch.stack([2 - images.mean((1, 2, 3)), 0 * images.sum((1, 2, 3))], 1)
    assert reader(real).argmax(1).sum() == 0
    for _ in range(300):
        reader.loss(real, torch.arange(16) % 2, real, 0.5, draws)
    assert reader.label_probs(real).argmax(1).tolist() == [0] * 8 + [1] * 8
    assert reader.label_probs(real).mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    reader.alike = False
    torch.testing.assert_close(reader.label_probs(real), reader(real).softmax(1))


def test_elastic_warp_keeps_the_size_and_is_drawn_per_row():
    images = torch.rand(3, 2, 9, 14)
    one = elastic_warp(images, torch.Generator().manual_seed(0))
    assert one.shape == images.shape and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, elastic_warp(images, torch.Generator().manual_seed(0)))
    assert (one - images).abs().flatten(1).mean(1).min() > 0.01
    torch.testing.assert_close(elastic_warp(images, torch.Generator().manual_seed(0), 0.0), images, atol=1e-5, rtol=0)
