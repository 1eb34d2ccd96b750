"""Prefetched batches are those of the columns, in bounded memory, and the thread ends with the training."""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from models.data import Columns
from models.training.loop import Training
from models.training.prefetch import AHEAD, Prefetched
from tests.models.data import dataset
from tests.models.training.second_rank import new_training

ROWS = {"images": np.arange(320, dtype=np.uint8).reshape(20, 1, 4, 4), "labels": np.arange(20)}
DOMAINS = {"a": ROWS["images"], "b": ROWS["images"][:7], "a_labels": ROWS["labels"]}


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("rows", [ROWS, DOMAINS])
@pytest.mark.parametrize("stride", [8, 16])
def test_batches_are_those_of_the_columns(rows, stride):
    """Over epochs; a rank of two takes every second slice."""
    plain, ahead = Columns(rows), Prefetched(Columns(rows), "cpu")
    for start in (*range(0, 160, stride), 24, 32, 8):
        assert same(ahead.batch(3, start, 8), plain.batch(3, start, 8))
    assert same(ahead.batch(4, 16, 5), plain.batch(4, 16, 5))
    assert same(ahead.head(3), plain.head(3)) and len(threads()) == 1
    ahead.close()
    assert not threads()


def test_only_a_few_batches_are_read_ahead():
    read = []

    class Counted(np.ndarray):
        def __getitem__(self, index):
            read.append(index)
            return np.asarray(self)[index]

    ahead = Prefetched(Columns(ROWS), "cpu")
    ahead._source.columns = {"images": ROWS["images"].view(Counted)}
    ahead.batch(0, 0, 2)
    deadline = time.monotonic() + 60
    while len(read) < AHEAD + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    assert len(read) == AHEAD + 2  # the one taken, those that wait, and the one that waits for room
    ahead.close()


def test_the_thread_reads_every_batch_once_in_a_training():
    ahead = Prefetched(Columns(ROWS), "cpu")
    ahead.batch(0, 0, 2)
    (thread,) = threads()
    for start in range(2, 40, 2):
        ahead.batch(0, start, 2)
    assert threads() == [thread]
    ahead.close()


def test_an_error_of_reading_is_raised_where_the_batch_is_asked_for():
    ahead = Prefetched(Columns(ROWS), "cpu")
    ahead._source.columns = {"images": ROWS["images"], "labels": ROWS["labels"][:1]}
    with pytest.raises(IndexError):
        ahead.batch(0, 0, 8)
    assert not threads()


def test_a_training_ends_its_thread_and_learns_the_same():
    config = {"batch_size": 8, "images": 40, "body": "mlp", "hidden": [8], "latent_dim": 2}
    plain, ahead = (new_training(Training, "autoencoder", config, 1) for _ in range(2))
    ahead.train = Prefetched(ahead.train, "cpu")
    losses = [[float(step.metrics["loss"]) for step in training.run()] for training in (plain, ahead)]
    assert losses[0] == losses[1] and len(losses[0]) == 5
    assert not threads()


def test_columns_that_nobody_uses_any_more_end_their_thread():
    ahead = Prefetched(dataset("plain")[1], "cpu")
    ahead.batch(0, 0, 4)
    assert threads()
    del ahead
    gc.collect()
    assert not threads()
