"""Makes lost files again, as a process of its own: `python -m workers.store.healing model|dataset ID`.

Weights come from the newest intact checkpoint of their training, arrays of a built-in dataset from its source. What
does not match the digest in the tables is not stored. Prints where the files come from; exits with 1 if it cannot.
"""

import sys

from sqlalchemy import select

from app.core.catalog.builtins import BUILTINS
from app.core.jobs import checkpoints
from app.core.jobs.state import Claim
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import reading
from app.core.store.tables import datasets, jobs, models
from workers import devices
from workers.data.builtin_rows import BuiltinSource
from workers.data.importing import read_source
from workers.data.rows import Options, Report
from workers.jobs.job import RunningJob
from workers.jobs.kinds.training import build
from workers.store.models import card_digest, load_checkpoint, model_key, pack
from workers.store.training_data import open_source


def heal_model(row_id: str) -> str | None:
    """Ends the training of a model again from its checkpoint; None if there is none or the weights differ."""
    with reading() as conn:
        model = conn.execute(select(models).where(models.c.id == row_id)).mappings().one()
        job = conn.execute(select(jobs).where(jobs.c.id == model["job_id"])).mappings().first()
    if job is None or job["kind"] != "training" or not job["checkpoint"]:
        return None
    ref = job["checkpoint"]
    state = load_checkpoint([*checkpoints.newest(ref), *reversed(checkpoints.marks(ref))])
    if state is None:
        return None
    devices.use_threads(settings().train_threads)  # sums depend on the number of threads
    facts = {name: job[name] for name in Claim.__dataclass_fields__} | {"token": ""}
    running = RunningJob(Claim(**facts))
    training = build(running, open_source(None, job["tenant"], job["spec"]["dataset"], ref.get("dataset")), state)
    training.restore(state)
    for _ in training.run():
        pass
    training.complete()
    weights = pack(training.family.serving_state())
    if card_digest(weights, dict(model["card"])) != model["digest"]:
        return None
    blobs.put(model_key(model["digest"], "weights.safetensors"), weights, create_only=False)
    return f"the checkpoint of job {job['id']} at {state.facts['images']} images"


def heal_dataset(row_id: str) -> str | None:
    """Reads a built-in dataset from its source again, which writes damaged arrays anew."""
    with reading() as conn:
        row = conn.execute(select(datasets).where(datasets.c.id == row_id)).mappings().one()
    kind, _, name = row["source"].partition(":")
    if kind != "builtin":
        return None
    size = {"image_size": f"{row['facts']['height']}x{row['facts']['width']}"} if BUILTINS[name].sizes else {}
    options = Options.read(size)
    published = read_source(BuiltinSource(name, options.size), options, Report(), lambda *_: None, lambda: None)
    return f"the built-in dataset {name}" if published.digest == row["digest"] else None


def main(kind: str, row_id: str) -> int:
    source = {"model": heal_model, "dataset": heal_dataset}[kind](row_id)
    if source:
        print(source)
    return 0 if source else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
