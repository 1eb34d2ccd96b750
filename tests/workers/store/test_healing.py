"""Lost weights come back from the checkpoint of their training, arrays of a built-in dataset from its source."""

import pytest
from sqlalchemy import select

from app.core.store import blobs
from app.core.store.database import reading, transaction
from app.core.store.tables import datasets, jobs, models
from tests.workers.trainings import TENANT, accept, attempt, finish, store_dataset
from workers.data import ensure_builtin
from workers.jobs.kinds.training import run_training
from workers.store import healing

pytestmark = pytest.mark.usefixtures("place")


def column(of) -> str:
    with reading() as conn:
        return conn.execute(select(of)).scalar_one()


def trained() -> tuple[str, bytes]:
    """The key of the weights of a short training, and their bytes."""
    store_dataset()
    job = attempt(accept("autoencoder", config={"images": 96, "batch_size": 8, "width": 4}))
    digest = finish(job, run_training(job))["result"]["version"]
    key = f"models/{digest}/weights.safetensors"
    return key, blobs.get(key)


def test_lost_weights_come_back_from_the_last_checkpoint_of_their_training():
    key, good = trained()
    blobs.delete_prefix(key)
    assert "96 images" in healing.heal_model(column(models.c.id))
    assert blobs.get(key) == good


def test_an_earlier_checkpoint_serves_when_the_last_is_damaged():
    key, good = trained()
    blobs.put(key, b"damaged", create_only=False)
    with reading() as conn:
        ref = conn.execute(select(jobs.c.checkpoint).where(jobs.c.kind == "training")).scalar_one()
    for entry in ref["kept"]:
        blobs.put(entry["key"], b"damaged", create_only=False)
    assert healing.heal_model(column(models.c.id)) and blobs.get(key) == good


def test_without_a_checkpoint_or_for_an_import_nothing_is_written(capsys):
    key, _ = trained()
    blobs.delete_prefix(key)
    with transaction() as conn:
        conn.execute(jobs.update().values(checkpoint=None))
    assert healing.main("model", column(models.c.id)) == 1
    assert not blobs.exists(key) and healing.main("dataset", column(datasets.c.id)) == 1


def test_arrays_of_a_built_in_dataset_are_drawn_again():
    row = ensure_builtin(None, TENANT, "digits8")
    key = f"datasets/{row['digest']}/train/images.npy"
    good = blobs.get(key)
    blobs.put(key, good[:-1] + bytes([good[-1] ^ 1]), create_only=False)
    assert healing.heal_dataset(row["id"]) == "the built-in dataset digits8"
    assert blobs.get(key) == good
