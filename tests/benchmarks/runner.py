"""Images per second of the training runner, with all it reports and keeps, against a bare PyTorch loop.

    python -m tests.benchmarks.runner [--families autoencoder vae classifier] [--seconds 6] [--rounds 3]

Same network, loss, optimiser and batch size, fp32, one thread, in turns; the bare loop has its data as one float tensor
in memory. The ratio should be 0.95 or more.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from app.core.jobs import state as jobs
from app.core.store.database import transaction
from models.context import StepContext
from models.data import Columns
from models.training.loop import Training
from tests.benchmarks.place import Rate, Stopwatch, own_place
from workers.jobs.job import RunningJob
from workers.jobs.kinds import training
from workers.jobs.training_log import TrainingLog
from workers.store.training_data import Source, open_source

DATASET = "mnist5k"
FAMILIES = ("autoencoder", "vae", "classifier")


def accept(family: str, images: int | None) -> RunningJob:
    config = {"precision": "fp32"} | ({"images": images} if images else {})
    spec = {"family": family, "dataset": DATASET, "config": config, "seed": 0}
    with transaction() as conn:
        job, _ = jobs.accept(conn, tenant="bench", kind="training", spec=spec)
        return RunningJob(jobs.claim(conn, job["id"], "bench"))


def runner(family: str, source: Source, images: int) -> Rate:
    """From the first update to the last checkpoint."""
    job = accept(family, images)
    built = training.build(job, source)
    training_log = TrainingLog(job, built, source.data.digest)
    watch = Stopwatch()
    training.train(job, built, training_log)
    return watch.rate(built.images)


def bare(family: str, source: Source, images: int) -> Rate:
    """The loop that anybody would write first, around the same network."""
    built = training.build(accept(family, images), source)
    model, size = built.family.train(), built.batch_size
    data = Columns(source.data.train).rows(torch.arange(len(built.train)))
    (optimiser,) = model.optimisers().values()
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, images // size))
    context = StepContext(images, images, 1, 0, torch.Generator().manual_seed(0))
    done, watch = 0, Stopwatch()
    while done < images:
        order = torch.randperm(len(built.train))
        for indices in order.split(size):
            loss, _ = model.loss({name: column[indices] for name, column in data.items()}, context)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if model.clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), model.clip)
            optimiser.step()
            decay.step()
            done += len(indices)
            if done >= images:
                break
    return watch.rate(done)


def length(built: Training, seconds: float) -> int:
    """Images that take about so many seconds."""
    for _ in range(5):
        built.advance()
    start, before = time.perf_counter(), built.images
    while time.perf_counter() - start < 1:
        built.advance()
    rate = (built.images - before) / (time.perf_counter() - start)
    return int(rate * seconds)


def compare(family: str, seconds: float, rounds: int) -> None:
    source = open_source(None, "bench", DATASET)
    images = length(training.build(accept(family, None), source), seconds)
    pairs = [(runner(family, source, images), bare(family, source, images)) for _ in range(rounds)]
    for clock in ("wall", "cpu"):
        rates = [(getattr(ours, clock), getattr(theirs, clock)) for ours, theirs in pairs]
        ours, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(one / other for one, other in rates)
        print(f"{family:24} {clock:5} runner {ours:7.0f}/s   bare loop {theirs:7.0f}/s   ratio {ratio:.3f}", flush=True)


def bench(families: tuple[str, ...] = FAMILIES, seconds: float = 6, rounds: int = 3) -> None:
    torch.set_num_threads(1)
    with own_place():
        for family in families:
            compare(family, seconds, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    bench(tuple(given.families), given.seconds, given.rounds)


if __name__ == "__main__":
    main()
