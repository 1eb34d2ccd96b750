"""A dataset is read where it lies: opening, training and measuring map its files, no copy of the images is made."""

import tracemalloc

import numpy as np

from models.data import Columns
from models.training.loop import Training
from tests.workers import trainings
from workers.jobs.kinds import training
from workers.store.training_data import open_source


def mapped(array: np.ndarray) -> bool:
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = getattr(array, "base", None)
    return False


def test_training_reads_rows_from_the_file(place, monkeypatch):
    trainings.store_dataset()
    source = open_source(None, trainings.TENANT, "small")
    job = trainings.attempt(trainings.accept("autoencoder", config={"images": 32}))
    monkeypatch.setattr(training, "open_source", lambda *_, **__: source)
    built: Training = training.build(job, source)
    for side in (built.train, built.validation):
        for name, column in side.columns.items():
            assert isinstance(column, np.ndarray) and mapped(column), name
    assert all(mapped(column) for column in source.data.train.values())


def test_a_batch_takes_the_memory_of_its_rows_alone(tmp_path):
    rows, size = 4096, 256 * 256
    np.lib.format.open_memmap(tmp_path / "images.npy", "w+", np.uint8, (rows, 1, 256, 256))  # sparse: 256 MB of zeros
    tracemalloc.start()
    try:
        columns = Columns({"images": np.load(tmp_path / "images.npy", mmap_mode="r")})
        assert columns.batch(0, 0, 8)["images"].shape == (8, 1, 256, 256)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 8 * size < rows * size / 8
