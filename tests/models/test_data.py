"""Columns hand out their rows where a training wants them, whatever holds them."""

import numpy as np
import pytest
import torch

from models.data import Columns

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
