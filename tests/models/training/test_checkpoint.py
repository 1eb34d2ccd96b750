"""Copies of the state of a training."""

import pytest
import torch

from models.training.checkpoint import on_host


def test_copies_keep_names_shapes_types_and_values_and_share_nothing_with_the_originals():
    kernel = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    tensors = {
        "kernel": kernel,
        "count": torch.tensor(3),
        "bias": torch.randn(2),
        "mask": torch.tensor([True, False]),
        "none": torch.empty(0),
        "step": torch.tensor(1.0, dtype=torch.float64),
    }
    wanted = {name: tensor.clone() for name, tensor in tensors.items()}
    copies, finite = on_host(tensors)
    for tensor in tensors.values():
        tensor.zero_()
    assert finite and list(copies) == list(tensors)
    for name, tensor in copies.items():
        assert tensor.dtype == wanted[name].dtype and torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_one_number_that_is_not_finite_is_found(value, kind):
    tensors = {"a": torch.ones(5), "b": torch.tensor([1.0, value], dtype=kind), "c": torch.ones(2, dtype=torch.int64)}
    assert not on_host(tensors)[1]
