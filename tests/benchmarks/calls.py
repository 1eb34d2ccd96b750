"""CPU time of an FGSM call with one image, compared with a classify call: inside the inference host, and over HTTP.

    python -m tests.benchmarks.calls [--only host,http] [--names small,usual,large,imagenet] [--rounds 5]

`small` is a two-convolution classifier of 28x28 digits, `usual` the service's default one of the same, `large` that of
64x64, `imagenet` the built-in efficientnet-lite0. The floor is a classify call plus one backward pass of the network;
an FGSM call needs one more forward pass, because it evaluates the returned bytes. Milliseconds of CPU time on one
thread, over HTTP of all processes of the service, the best of many.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil
import torch
from torch import nn

from app.cli.client import Client
from models.family import Family
from models.registry import families
from models.types import DataSpec
from tests.benchmarks.host import facts_of
from tests.benchmarks.load import drive, request
from tests.benchmarks.place import own_place
from tests.system.conftest import ready_service, start_service
from tests.system.processes import end
from workers import codecs
from workers.inference.host import Host
from workers.store import models as artifacts
from workers.store.pretrained import BUILDERS

NAMES = "small", "usual", "large", "imagenet"
SIZES = {"small": (28, 1), "usual": (28, 1), "large": (64, 1), "imagenet": (224, 3)}
CONFIGS = {"small": {"body": "conv"}, "usual": {}, "large": {}}
BUILTIN = "efficientnet-lite0"
EPS = "8/255"
MAX_RATIO = 1.3


def picture(size: int, channels: int) -> bytes:
    """A PNG of smooth shapes."""
    grid = torch.linspace(0, 6, size)
    wave = ((grid[:, None] + torch.arange(channels)[:, None, None]).sin() * grid.cos() + 1) / 2
    return codecs.encode_png((wave[None] * 255).round().byte().numpy())[0]


def model_of(name: str) -> tuple[Family, dict]:
    """An untrained network, or the built-in one, and its facts."""
    if name == "imagenet":
        return BUILDERS[BUILTIN]()[:2]
    facts = facts_of(*SIZES[name])
    return families()["classifier"].create(CONFIGS[name], DataSpec.from_facts(facts)), facts


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """CPU milliseconds of a call: the minimum of many."""
    work()
    timings, until = [], time.perf_counter() + 0.7 * rounds
    while len(timings) < 5 * rounds or time.perf_counter() < until:
        start = time.process_time()
        work()
        timings.append(time.process_time() - start)
    return min(timings) * 1000


def passes(model: Family, name: str, rounds: int) -> tuple[float, float]:
    """CPU milliseconds of a forward pass of the network, and of the backward pass to its input."""
    size, channels = SIZES[name]
    x, truth = torch.rand(1, channels, size, size), torch.zeros(1, dtype=torch.int64)

    def forward() -> None:
        with torch.inference_mode():
            model.logits(x)

    def both() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(model.logits(leaf), truth), leaf)

    one = milliseconds(forward, rounds)
    return one, max(milliseconds(both, rounds) - one, 0.0)


def line(name: str, where: str, attack: float, classify: float, forward: float, backward: float) -> None:
    floor = classify + backward
    verdict = "reached" if attack <= MAX_RATIO * floor else "MISSED"
    print(
        f"{name:9} {where:5} attack {attack:8.2f}   classify {classify:8.2f}   forward {forward:7.2f}   "
        f"backward {backward:7.2f}   ratio to classify + backward {attack / floor:.2f}, "
        f"target <= {MAX_RATIO}: {verdict}",
        flush=True,
    )


def in_host(names: list[str], rounds: int) -> dict[str, tuple[float, float]]:
    """Prints the calls in the host; returns the passes of each network."""
    measured = {}
    with own_place():
        host = Host(1 << 30, torch.device("cpu"))
        for name in names:
            model, facts = model_of(name)
            model.eval().requires_grad_(False)
            digest, _ = artifacts.publish(model, facts, {"name": name})
            measured[name] = passes(model, name, rounds)
            call = {"model": digest, "encoding": "png", "images": [picture(*SIZES[name])]}
            calls = [
                call | {"operation": "attack", "params": {"method": "fgsm", "eps": EPS}},
                call | {"operation": "classify", "params": {}},
            ]
            line(name, "host", *(milliseconds(lambda c=c: answered(host, c), rounds) for c in calls), *measured[name])
    return measured


def answered(host: Host, call: dict) -> None:
    (outcome,) = host.execute([call])
    assert "answer" in outcome, outcome


def over_http(names: list[str], rounds: int, measured: dict[str, tuple[float, float]]) -> None:
    with tempfile.TemporaryDirectory(prefix="anamorph-bench-") as folder:
        process = start_service(Path(folder))
        try:
            url = ready_service(Path(folder), process)["url"]
            with Client(url) as client:
                for name in names:
                    make(client, name)
            where = urlsplit(url)
            for name in names:
                paths = f"attack?method=fgsm&eps={EPS}", "classify"
                messages = [request("POST", f"/v1/models/{name}/{path}", picture(*SIZES[name])) for path in paths]
                service = psutil.Process(process.pid)
                timings = [spent_on(service, where.hostname, where.port, message, rounds) for message in messages]
                line(name, "http", *timings, *(measured.get(name) or passes(model_of(name)[0].eval(), name, rounds)))
        finally:
            end(process)


def make(client: Client, name: str) -> None:
    """Creates the model by training for one epoch; the time of a call does not depend on the weights."""
    if name == "imagenet":
        client.ask("PUT", f"/v1/models/{name}", params={"builtin": BUILTIN})
        return
    dataset = "mnist5k"
    if name == "large":
        answer = client.ask("POST", "/v1/datasets", params={"builtin": "glyphs", "image_size": 64, "name": "glyphs64"})
        client.wait(answer.json()["id"])
        dataset = "glyphs64"
    body = {"family": "classifier", "dataset": dataset, "name": name, "config": CONFIGS[name] | {"epochs": 1}}
    client.wait(client.ask("POST", "/v1/trainings", json=body).json()["id"])


def spent_on(service: psutil.Process, host: str, port: int, message: bytes, rounds: int) -> float:
    """CPU milliseconds of the service per call of a client that sends calls without pause."""
    timings = []
    for _ in range(rounds + 1):  # the first is a warm-up
        before, start = computed(service), time.perf_counter()
        load = asyncio.run(drive(host, port, [message], 1, 3.0))
        assert not load.errors, "a call was refused"
        calls = load.rate * (time.perf_counter() - start)
        after = computed(service)  # without processes that began or ended meanwhile
        timings.append(sum(after[pid] - before[pid] for pid in after.keys() & before.keys()) * 1000 / calls)
    return min(timings[1:])


def computed(service: psutil.Process) -> dict[int, float]:
    """CPU seconds of each process of the service."""
    seconds = {}
    for process in (service, *service.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="host,http")
    parser.add_argument("--names", default=",".join(NAMES))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names, only = options.names.split(","), options.only.split(",")
    measured = in_host(names, options.rounds) if "host" in only else {}
    if "http" in only:
        over_http(names, options.rounds, measured)


if __name__ == "__main__":
    main()
