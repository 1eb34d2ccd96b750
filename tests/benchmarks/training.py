"""Training speed: images per second of the engine beside a bare loop of the same network.

The bare loop has the images as floats in memory, one fused Adam, one schedule-free rate and reports nothing.
"""

import argparse
import time

import numpy as np
import torch

from models.data import Columns
from models.registry import families
from models.training.loop import Meter, Training
from models.types import DataSpec

FAMILIES = ("autoencoder", "denoising_autoencoder", "vae", "classifier")
TARGET = 0.95


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


def bench() -> None:
    """Every family, with its default body and as an MLP."""
    measure(updates=60, rounds=5, threads=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    measure(**vars(parser.parse_args()))


def measure(updates: int, rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    for name in FAMILIES:
        for config in ({}, {"body": "mlp"}) if name != "classifier" else ({},):
            compare(name, config, 28, updates, rounds)


if __name__ == "__main__":
    main()
