"""Images per second of the inference host, PNG in and PNG out, against the model alone.

    python -m tests.benchmarks.host [--families autoencoder vae] [--size 28] [--seconds 2] [--calls 1 8 64]

`forward` is the bare network on as many images at once; `floor` adds decoding and encoding of PNGs, without any host.
All on one thread; `calls` are single-image calls of one micro-batch.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from models.family import Family
from models.registry import families
from models.types import DataSpec
from tests.benchmarks.place import Rate, Stopwatch, own_place
from workers import codecs
from workers.inference.host import Host
from workers.store import models as artifacts

CALLS = (1, 8, 64)
FAMILIES = ("autoencoder", "vae")
OPERATION = "reconstruct"


def facts_of(size: int, channels: int) -> dict:
    counts = {"images": 4000, "labels": 4000}
    return {
        "layout": "labelled", "height": size, "width": size, "channels": channels,
        "classes": [str(index) for index in range(10)], "columns": {"train": counts, "validation": counts},
    }  # fmt: skip


def measure(work: Callable[[], object], images: int, seconds: float) -> Rate:
    """The best of three."""
    work()
    found = []
    for _ in range(3):
        done, watch, end = 0, Stopwatch(), time.perf_counter() + seconds / 3
        while time.perf_counter() < end:
            work()
            done += images
        found.append(watch.rate(done))
    return Rate(max(rate.wall for rate in found), max(rate.cpu for rate in found))


def compare(family: str, size: int, channels: int, calls: tuple[int, ...], seconds: float) -> None:
    facts = facts_of(size, channels)
    model = families()[family].create({}, DataSpec.from_facts(facts)).eval().requires_grad_(False)
    digest, _ = artifacts.publish(model, facts, {"name": "bench"})
    host, draws = Host(1 << 30, torch.device("cpu")), np.random.default_rng(0)
    for count in calls:
        pngs = codecs.encode_png(draws.integers(0, 256, (count, channels, size, size), dtype=np.uint8))
        call = {"model": digest, "operation": OPERATION, "params": {}, "encoding": "png"}
        asked = [call | {"images": [png]} for png in pngs]
        tensor = torch.rand(count, channels, size, size)
        forward = measure(lambda tensor=tensor: run(model, tensor), count, seconds)
        floor = measure(lambda pngs=pngs: through(model, facts, pngs), count, seconds)
        ours = measure(lambda asked=asked: host.execute(asked), count, seconds)
        for clock in ("wall", "cpu"):
            alone, bare, mine = (getattr(rate, clock) for rate in (forward, floor, ours))
            print(
                f"{family} {size}x{size}x{channels} calls {count:3} {clock:4}  forward {alone:7.0f}/s   "
                f"floor {bare:7.0f}/s   host {mine:7.0f}/s   host/floor {mine / bare:.2f}",
                flush=True,
            )


@torch.inference_mode()
def run(model: Family, images: torch.Tensor) -> torch.Tensor:
    return model.decode(model.encode(images))


def through(model: Family, facts: dict, pngs: list[bytes]) -> list[bytes]:
    return codecs.encode_png(run(model, codecs.to_tensor(codecs.decode_batch(facts, pngs))))


def bench(
    chosen: tuple[str, ...] = FAMILIES,
    size: int = 28,
    channels: int = 1,
    calls: tuple[int, ...] = CALLS,
    seconds: float = 2,
) -> None:
    torch.set_num_threads(1)
    with own_place():
        for family in chosen:
            compare(family, size, channels, calls, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--size", type=int, default=28)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--calls", nargs="+", type=int, default=CALLS)
    parser.add_argument("--seconds", type=float, default=2)
    given = parser.parse_args()
    bench(tuple(given.families), given.size, given.channels, tuple(given.calls), given.seconds)


if __name__ == "__main__":
    main()
