"""Training speed: images per second of the engine beside a bare loop of the same network.

The bare loop has the images as floats in memory, one fused Adam, one schedule-free rate and reports nothing.

    python -m tests.benchmarks.training --costs [--efforts lesson good] [FAMILY ...]

measures instead what an image costs in an update of each family with an empty config, beside what the family states
(`Family.milliseconds_per_image`), and what its default length takes of `CPU_SECONDS`.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from models.data import Columns
from models.family import CPU_SECONDS
from models.registry import families
from models.training.loop import Meter, Training
from models.types import DataError, DataSpec
from tests.models.data import for_family

FAMILIES = ("autoencoder", "denoising_autoencoder", "vae", "classifier")
TARGET = 0.95
SHAPES = {(1, 28, 28): (4000, 60_000), (3, 32, 32): (4000,), (3, 64, 64): (4000,)}
"""Shapes of images, and the numbers of training images with which the config is completed."""
POSITIONS = 6
"""Points of a training at which updates are timed: stages and growing networks differ."""


def digits(count: int, side: int) -> tuple[DataSpec, Columns]:
    """Random images: speed does not ask what they show."""
    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (count, 1, side, side), dtype=np.uint8)
    rows = {"images": images, "labels": draws.integers(0, 10, count)}
    counts = {"train": dict.fromkeys(rows, count)}
    return DataSpec("labelled", side, side, 1, tuple("0123456789"), counts), Columns(rows)


def engine(training: Training, updates: int) -> float:
    """CPU seconds of `updates` steps of a training, metered as the worker meters them."""
    meter, start = Meter(), time.process_time()
    for _ in range(updates):
        meter.add(training.advance().metrics)
    meter.pop_means()
    return time.process_time() - start


def bare(training: Training, batches: list[dict], updates: int) -> float:
    """CPU seconds of as many updates written out by hand."""
    family, context = training.family, training.context()
    optimiser = torch.optim.Adam(family.parameters(), lr=1e-3, fused=True)
    start = time.process_time()
    for index in range(updates):
        loss, _ = family.loss(batches[index % len(batches)], context)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return time.process_time() - start


def compare(name: str, config: dict, side: int, updates: int, rounds: int) -> float:
    """The share of the bare loop's speed, the median of alternating rounds."""
    spec, rows = digits(4096, side)
    training = Training(families()[name].create(config, spec), rows, rows)
    size = training.batch_size
    batches = [training.train.batch(0, start, size) for start in range(0, 16 * size, size)]
    engine(training, 3), bare(training, batches, 3)
    ratios = []
    for _ in range(rounds):
        plain, ours = bare(training, batches, updates), engine(training, updates)
        ratios.append((plain / ours, size * updates / ours, size * updates / plain))
    share, speed, floor = sorted(ratios)[rounds // 2]
    verdict = "ok" if share >= TARGET else "BELOW"
    print(
        f"{name:24} {config!s:20} {side}x{side}  {speed:8.0f} images/s  bare {floor:8.0f}  share {share:.3f} {verdict}"
    )
    return share


def costs(names: Sequence[str], efforts: Sequence[str]) -> None:
    """One line for each family, shape and effort."""
    torch.set_num_threads(1)
    heads = f"{'family':25} {'shape':9} {'count':>6} {'effort':6} {'batch':>5} {'images':>7}"
    print(f"{heads}  ms/image  stated  CPU s; relative cost along the training")
    for name in names or families():
        for shape, counts in SHAPES.items():
            for count in counts:
                for effort in efforts:
                    cost_line(name, shape, count, effort)


def cost_line(name: str, shape: tuple[int, int, int], count: int, effort: str) -> None:
    family = families()[name]
    spec, train, validation = for_family(family, shape, 128)
    counts = {side: dict.fromkeys(columns, count) for side, columns in spec.columns.items()}
    spec = replace(spec, columns=counts)
    try:
        training = Training(family.create({"effort": effort}, spec), train, validation)
    except DataError as error:
        print(f"{name:25} {error.detail}")
        return
    profile, stated = milliseconds(training), family.milliseconds_per_image(training.family.config, spec)
    measured = sum(profile) / POSITIONS
    relative = " ".join(f"{value / measured:.1f}" for value in profile)
    size = "x".join(map(str, shape))
    print(
        f"{name:25} {size:9} {count:6} {effort:6} {training.batch_size:5} {training.total:7} {measured:9.3f} "
        f"{stated:7.3f} {training.total * measured / 1000:6.0f} of {family.cpu_seconds[effort]:.0f}  {relative}",
        flush=True,
    )


def milliseconds(training: Training, least: float = 0.4) -> list[float]:
    """CPU time of an image in an update at each position of the training."""
    training.monitor.steps, training.midway_points = set(), set()
    training.family.train()
    times = []
    for position in range(POSITIONS):
        step = (training.total // training.batch_size) * (2 * position + 1) // (2 * POSITIONS)
        training.step, training.images = step, step * training.batch_size
        training.advance()
        rounds, began = [], time.process_time()
        while len(rounds) < 2 or time.process_time() - began < least:
            start = time.process_time()
            training.advance()
            rounds.append(time.process_time() - start)
        times.append(1000 * sorted(rounds)[len(rounds) // 3] / training.batch_size)
    return times


def bench() -> None:
    """Every family, with its default body and as an MLP."""
    measure(updates=60, rounds=5, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="with --costs")
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--efforts", nargs="+", default=["lesson"], choices=list(CPU_SECONDS))
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.costs:
        costs(options.families, options.efforts)
    else:
        measure(options.updates, options.rounds, options.threads)


def measure(updates: int, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    for name in FAMILIES:
        for config in ({}, {"body": "mlp"}) if name != "classifier" else ({},):
            compare(name, config, 28, updates, rounds)


if __name__ == "__main__":
    main()
