"""Columns hand out their rows where a training wants them, whatever holds them."""

import numpy as np
import pytest
import torch

from models.data import Columns
from models.types import InputError, class_index

ROWS = {"images": np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4), "labels": np.array([2, 0, 1])}


def test_rows_are_handed_out_on_the_device_of_the_training():
    away = Columns(ROWS).onto("meta")
    everything = [away.rows(torch.tensor([0, 2])), away.head(2), away.spaced(2), away.batch(0, 0, 2), *away.batches(3)]
    assert all(tensor.device.type == "meta" for rows in everything for tensor in rows.values())
    assert away.columns["images"] is not None and not isinstance(away.columns["images"], torch.Tensor)


@pytest.mark.parametrize("place", [lambda columns: columns, lambda columns: columns.to("cpu"), lambda c: c.onto("cpu")])
def test_rows_are_the_same_wherever_they_lie(place):
    rows = place(Columns(ROWS)).rows(torch.tensor([2, 0]))
    assert rows["labels"].tolist() == [1, 2]
    torch.testing.assert_close(rows["images"], torch.from_numpy(ROWS["images"][[2, 0]]) / 255)


@pytest.mark.parametrize(
    ("label", "index"), [("2", 1), (2, 1), ("100", 4), (100, 4), (0, 0), ("0", 0), (3, 3), ("3", 3)]
)
def test_a_number_that_is_the_name_of_a_class_is_that_class(label, index):
    assert class_index(("1", "2", "10", "20", "100"), label) == index


@pytest.mark.parametrize("label", [5, "5", -1, "-1", "x", "", "²", "9" * 5000])
def test_an_unknown_class_is_refused_with_the_choices(label):
    with pytest.raises(InputError, match="choose one of 1, 2, 10, 20, 100"):
        class_index(("1", "2", "10", "20", "100"), label)
