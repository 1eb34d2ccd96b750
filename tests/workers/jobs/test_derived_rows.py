"""A dataset made of what a model does with another: the same rows and labels, the bytes a call would answer."""

import numpy as np
import pytest
import torch

from app.core.errors import AnamorphError, InvalidDataset
from app.core.store import blobs
from app.core.store.database import transaction
from app.core.store.datasets import find
from tests import tiny
from tests.workers.trainings import TENANT, accept, attempt, finish, store_dataset
from workers import codecs
from workers.data import OpenDataset, open_dataset
from workers.inference.host import Host
from workers.jobs.job import RunningJob, Stopped
from workers.jobs.kinds import dataset as datasets
from workers.jobs.kinds.derived_rows import DerivedSource
from workers.store import model_rows
from workers.store import models as artifacts


@pytest.fixture
def model(place, monkeypatch) -> str:
    monkeypatch.setattr(artifacts, "families", lambda: tiny.FAMILIES)
    monkeypatch.setattr("workers.devices.use_threads", lambda wanted: None)
    net = tiny.build(tiny.TinyAutoencoder, 0)
    for parameter in net.outward.parameters():
        parameter.mul_(8)  # else many images end in the same bytes, and equal ones are kept out of validation
    digest, card = artifacts.publish(net, tiny.facts(), {"name": "m", "seed": 0})
    with transaction() as conn:
        model_rows.register(conn, tenant=TENANT, card=card, job_id=None)
    return digest


def derived(**spec) -> str:
    given = {"dataset": "small", "model": "m", "operation": "denoise", "params": {}, "name": "cleaner"}
    return accept(kind="dataset", **given | spec)


def test_rows_labels_and_splits_are_kept_and_images_are_what_a_call_answers(model):
    source = open_dataset(store_dataset(count=100))
    job = attempt(derived())
    row = finish(job, datasets.run_dataset(job))
    assert (row["state"], row["result"]["count"]) == ("succeeded", 133)
    made = open_dataset(row["result"]["digest"])
    assert made.facts["classes"] == source.facts["classes"] and made.facts["layout"] == "labelled"
    asked = {"model": model, "operation": "denoise", "params": {}, "encoding": "npy"}
    for side in ("train", "validation"):
        before, after = getattr(source, side), getattr(made, side)
        assert np.array_equal(before["labels"], after["labels"])
        call = asked | {"images": codecs.encode_png(before["images"])}
        (answer,) = Host(1 << 30, torch.device("cpu")).execute([call])
        images = codecs.decode_npy(answer["answer"]["images"][0], (None, 1, 8, 8))
        assert np.array_equal(codecs.to_uint8(images), after["images"])


def test_it_says_where_it_came_from(model):
    store_dataset()
    job = attempt(derived())
    finish(job, datasets.run_dataset(job))
    with transaction() as conn:
        row = find(conn, TENANT, "cleaner")
    assert (row["source"], row["licence"], row["attribution"]) == ("derived:small", "CC0", "nobody")


@pytest.mark.parametrize(
    ("size", "spec", "words"),
    [
        (8, {"column": "a"}, "no image column 'a'"),
        (12, {}, "1x12x12"),
        (8, {"operation": "classify"}, "does not support"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_left(model, size, spec, words):
    store_dataset(size=size)
    job = attempt(derived(**spec))
    with pytest.raises(AnamorphError, match=words) as error:
        datasets.run_dataset(job)
    assert error.value.status in (409, 422)
    assert isinstance(error.value, InvalidDataset) == ("operation" not in spec)
    with transaction() as conn:
        assert find(conn, TENANT, "cleaner") is None


def test_it_stops_between_images_and_leaves_nothing(model):
    class Stopping(RunningJob):
        stopping = "cancel"

    store_dataset()
    before = blobs.list("datasets/")
    with pytest.raises(Stopped):
        datasets.run_dataset(attempt(derived(), Stopping))
    assert blobs.list("datasets/") == before


def test_a_domain_with_labels_becomes_a_labelled_dataset(model):
    """So refined images can train a classifier."""
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), np.uint8)
    side = {"a": images, "b": images[:2], "a_labels": np.arange(6) % 2, "b_labels": np.zeros(2, np.int64)}
    facts = {"layout": "unpaired", "height": 8, "width": 8, "channels": 1, "classes": ["x", "y"]}
    columns = {split: {name: len(column) for name, column in side.items()} for split in ("train", "validation")}
    loaded = Host(1 << 30, torch.device("cpu")).models.get(model)
    source = DerivedSource(OpenDataset("d", facts | {"columns": columns}, side, side), loaded, "denoise", {}, None)
    assert source.layout == "labelled" and source.classes == ["x", "y"]
    assert [row.values["labels"] for row in source.rows()] == [0, 1] * 6
