"""Two calls on one model that alternate at every check give the bytes of calls that were left alone."""

import threading

import pytest
import torch

from models.nn import tiling
from models.registry import families, operations
from models.types import DataSpec
from tests import tiny
from tests.workers.inference.test_host import bare, call, png, published, registered, side_of  # noqa: F401
from workers.inference.host import Host
from workers.inference.lane import Turn, Turns
from workers.store import models as artifacts

KINDS = [*tiny.FAMILIES.values(), families()["vae"], families()["classifier"]]
PAIRS = [
    pytest.param(kind, operation, id=f"{kind.name}-{operation.name}")
    for kind in KINDS
    for operation in operations().values()
    if operation.fits(kind) and operation.report is None
]


class Alternating(Turn):
    """Lets the other one compute at every check, however short it has computed."""

    checks = 0

    def __call__(self) -> None:
        self.checks += 1
        if self.held and self.turns.waiting:
            with self.turns._lock:
                other = self.turns.waiting[0]
                self.turns._charge(self, 0.0)
                self.turns._wait(self, 0.0)
                self.turns._grant(other, 0.0)
            self.granted.acquire()


def interleaved(host: Host, *calls: dict) -> tuple[list[dict], int]:
    """The outcomes of calls that begin together, and how often one let another compute."""
    turns, start, outcomes = Turns(), threading.Barrier(len(calls)), [None] * len(calls)
    parts = [Alternating([one], turns) for one in calls]

    def run(index: int) -> None:
        start.wait()
        (outcomes[index],) = host.execute([calls[index]], parts[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [bare(outcome) for outcome in outcomes], sum(part.checks for part in parts)


@pytest.mark.parametrize(("kind", "operation"), PAIRS)
def test_calls_that_alternate_give_the_bytes_of_calls_alone(kind, operation):
    digest, side = published(kind), side_of(kind)
    calls = [call(digest, operation, seed, images, side) for seed, images in ((0, 3), (7, 2), (11, 1))]
    if kind is tiny.TinyGenerator:
        for seed, each in enumerate(calls):
            each["params"]["label"] = seed % 3
    alone = [bare(Host(1 << 30, torch.device("cpu")).execute([each])[0]) for each in calls]
    found, checks = interleaved(Host(1 << 30, torch.device("cpu")), *calls)
    assert found == alone
    assert checks


def test_tiles_of_two_images_are_normalised_each_by_its_own_image(monkeypatch):
    kind = families()["cyclegan"]
    monkeypatch.setattr(artifacts, "families", lambda: {"cyclegan": kind})
    monkeypatch.setattr(tiling, "WHOLE", 16)
    facts = {"layout": "two_domains", "height": 16, "width": 16, "channels": 1, "classes": None}
    facts["columns"] = {"train": {"a": 10, "b": 10}, "validation": {}}
    model = kind.create({"width": 4}, DataSpec.from_facts(facts)).eval()
    digest, _ = artifacts.publish(model, facts, {"name": "two"})
    asked = {"model": digest, "operation": "translate", "encoding": "npy"}
    calls = [
        asked | {"params": {"cycle": cycle}, "images": [png(seed, 40)]}
        for seed, cycle in ((0, True), (1, True), (2, False))
    ]
    alone = [bare(Host(1 << 30, torch.device("cpu")).execute([each])[0]) for each in calls]
    found, checks = interleaved(Host(1 << 30, torch.device("cpu")), *calls)
    assert found == alone
    assert checks > 100, "a large image lets others compute between the layers of its network"
