"""The clients of a drill order jobs over HTTP, repeat, hang up, cancel, resume and call, and keep every answer."""

import io
import itertools
import json
import random
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.system.drill.checker import ENDS
from tests.system.drill.history import Order

SIZE, CLASSES = 8, 3
RECIPES = {
    "vae-1": ("vae", {"images": 900, "batch_size": 16}, 1),
    "classifier-1": ("classifier", {"images": 1000, "batch_size": 16}, 1),
    "classifier-2": ("classifier", {"images": 700, "batch_size": 16}, 2),
    "autoencoder-1": ("autoencoder", {"images": 600, "batch_size": 8}, 3),
}
"""Trainings by name: family, config, seed. The first is also the model that is called."""
KINDS = ("dataset",) * 14 + ("training",) * 3 + ("model", "operation", "report")
"""What a twentieth of the orders each is; most are cheap, so that many end."""
RESUMABLE = ("training", "report")
ALLOWED = {
    "order": {202, 429, 503, 504},
    "look": {200, 503, 504},
    "cancel": {200, 202, 409, 503, 504},
    "resume": {200, 202, 409, 503, 504},
    "call": {200, 429, 503, 504},
}
"""Statuses that a client may get, whatever is killed meanwhile."""


def pictures(seed: int, count: int = 24) -> dict[str, bytes]:
    """PNG files in a folder for each class, all different."""
    draws = np.random.default_rng(seed)
    files = {}
    for index in range(count):
        image = draws.integers(0, 120, (SIZE, SIZE), dtype=np.uint8)
        image[:, 2 * (index % CLASSES) : 2 * (index % CLASSES) + 2] += 120
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files[f"class{index % CLASSES}/{index}.png"] = file.getvalue()
    return files


def archive(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in files.items():
            zipped.writestr(zipfile.ZipInfo(name), data)  # without the time: the same bytes each time
    return file.getvalue()


def graph(seed: int) -> bytes:
    """An ONNX file: one linear layer."""
    weights = np.random.default_rng(seed).normal(size=(SIZE * SIZE, CLASSES)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIZE, SIZE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])
    body = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString()


def request_of(order: Order) -> dict[str, Any]:
    """What is sent for the order, the same each time."""
    number, headers = order.number, {"Idempotency-Key": order.key}
    if order.kind == "dataset":
        data = archive(pictures(number))
        headers["Content-Type"] = "application/zip"
        return {"method": "POST", "url": f"/v1/datasets?name=set-{order.key}", "content": data, "headers": headers}
    if order.kind == "training":
        family, config, seed = RECIPES[order.recipe]
        body = {"family": family, "dataset": "base", "name": order.recipe, "config": config, "seed": seed}
        return {"method": "POST", "url": "/v1/trainings", "json": body, "headers": headers}
    if order.kind == "model":
        card = {"height": SIZE, "width": SIZE, "channels": 1, "labels": ["a", "b", "c"]}
        files = {"file": ("m.onnx", graph(number), "application/octet-stream"), "card": (None, json.dumps(card))}
        boundary = {"Content-Type": "multipart/form-data; boundary=drill"}
        return {"method": "PUT", "url": f"/v1/models/net-{order.key}", "files": files, "headers": headers | boundary}
    if order.kind == "operation":
        headers["Prefer"] = "respond-async"
        return {"method": "GET", "url": f"/v1/models/vae-1/samples?n=8&seed={number}", "headers": headers}
    body = {"report": "anomaly", "model": "vae-1", "dataset": "base", "params": {"images": 16}}
    return {"method": "POST", "url": "/v1/reports", "json": body, "headers": headers}


@dataclass
class Answers:
    """What clients got, over all threads."""

    counts: Counter = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, answer: httpx.Response | Exception) -> None:
        status = answer.status_code if isinstance(answer, httpx.Response) else type(answer).__name__
        with self.lock:
            self.counts[what, str(status)] += 1
            if isinstance(status, int) and status not in ALLOWED[what]:
                self.unexpected.append(
                    f"{what}: {answer.request.method} {answer.url.path} {status} {answer.text[:300]}"
                )


class Clients:
    """`width` clients order `count` jobs, each one at a time from the order to its end; others only call."""

    def __init__(
        self, url: str, count: int, width: int, seed: int, recipes: int, kinds: tuple[str, ...], callers: int = 1
    ):
        self.url, self.count, self.width, self.seed, self.callers = url, count, width, seed, callers
        self.recipes, self.kinds = list(RECIPES)[:recipes], kinds
        self.answers, self.orders = Answers(), []
        self.prepared: set[str] = set()  # the jobs before the first order
        self.stopping = threading.Event()
        self.ended = 0
        self.expected_call: bytes | None = None
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self.threads: list[threading.Thread] = []

    # ---- before and after the blows, when every answer is a good one

    def prepare(self) -> dict[str, dict[str, Any]]:
        """The dataset, and a calm run of each recipe: recipe -> job."""
        with httpx.Client(base_url=self.url, timeout=120) as http:
            data = archive(pictures(0, 60))
            headers = {"Content-Type": "application/zip"}
            self._calm(http, http.post("/v1/datasets?name=base", content=data, headers=headers))
            orders = {recipe: Order(-1, "training", f"calm-{recipe}", recipe) for recipe in self.recipes}
            jobs = {recipe: http.request(**request_of(order)) for recipe, order in orders.items()}
            done = {recipe: self._calm(http, answer) for recipe, answer in jobs.items()}
            if self.recipes:
                self.expected_call = self._patient(lambda: http.get(**self.call())).content
            return done

    def _calm(self, http: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code == 202, answer.text
        job = answer.json()
        self.prepared.add(job["id"])
        while job["status"] not in ENDS:
            time.sleep(0.5)
            job = http.get(f"/v1/jobs/{job['id']}").json()
        assert job["status"] == "succeeded", job
        return job

    def _patient(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        for _ in range(60):
            if (answer := send()).status_code == 200:
                return answer
            time.sleep(1)
        raise AssertionError(answer.text)

    @staticmethod
    def call() -> dict[str, Any]:
        return {"url": "/v1/models/vae-1/samples?n=4&seed=7", "headers": {"Accept": "image/png"}}

    # ---- under fire

    def start(self) -> None:
        self.threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(self.width)]
        callers = self.callers if self.recipes else 0
        self.threads += [threading.Thread(target=self._call, daemon=True) for _ in range(callers)]
        for thread in self.threads:
            thread.start()

    def all_ended(self) -> bool:
        return self.ended >= self.count

    def stop(self) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join(120)

    def order(self, number: int) -> Order:
        """The same order for the same number."""
        draws = random.Random(number)
        kind = draws.choice(self.kinds)
        return Order(number, kind, f"job-{number}", draws.choice(self.recipes) if kind == "training" else None)

    def _run(self, index: int) -> None:
        draws = random.Random(f"{self.seed} {index}")
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self.stopping.is_set():
                with self._lock:
                    if (number := next(self._numbers)) >= self.count:
                        return
                    self.orders.append(order := self.order(number))
                self._serve(http, order, draws)

    def _serve(self, http: httpx.Client, order: Order, draws: random.Random) -> None:
        """One order from its first request to its end."""
        if draws.random() < 0.15:
            self._hang_up(order, draws.uniform(0.005, 0.2))
        if not self._order(http, order):
            return
        repeat_at = draws.randint(0, 6) if draws.random() < 0.4 else None
        cancel_at = draws.randint(0, 6) if draws.random() < 0.12 else None
        resume = order.kind in RESUMABLE and draws.random() < 0.7
        for look in itertools.count():
            status = self._look(http, order)
            if look == repeat_at and not self._order(http, order):
                return
            if look == cancel_at:
                order.canceled = True
                self._send(http, "cancel", "POST", f"/v1/jobs/{min(order.ids)}/cancel")
            elif status == "canceled" and resume:
                answer = self._send(http, "resume", "POST", f"/v1/jobs/{min(order.ids)}/resume")
                resume = answer is None or answer.status_code >= 500  # until an answer came
            elif status in ENDS and (repeat_at is None or look > repeat_at):
                with self._lock:
                    self.ended += 1
                return
            if self.stopping.wait(draws.uniform(0.5, 1.5)):
                return

    def _hang_up(self, order: Order, seconds: float) -> None:
        """Sends the order and does not wait for the answer."""
        with httpx.Client(base_url=self.url, timeout=seconds) as http:
            self._take(order, self._send(http, "order", **request_of(order)))

    def _order(self, http: httpx.Client, order: Order) -> bool:
        """Sends the order until it is accepted. False: refused for good, or the drill is over."""
        request = request_of(order)
        while not self.stopping.is_set():
            answer = self._send(http, "order", **request)
            if self._take(order, answer):
                return True
            if answer is not None and answer.status_code not in ALLOWED["order"]:
                return False
            self.stopping.wait(0.5)
        return False

    def _take(self, order: Order, answer: httpx.Response | None) -> bool:
        if answer is None or answer.status_code != 202:
            return False
        order.ids.add(answer.json()["id"])
        return True

    def _look(self, http: httpx.Client, order: Order) -> str | None:
        answer = self._send(http, "look", "GET", f"/v1/jobs/{min(order.ids)}")
        if answer is None or answer.status_code != 200:
            return None
        status = answer.json()["status"]
        if order.states[-1:] != [status]:
            order.states.append(status)
        return status

    def _send(self, http: httpx.Client, what: str, method: str, url: str, **request: Any) -> httpx.Response | None:
        try:
            answer = http.request(method, url, **request)
        except httpx.HTTPError as error:
            self.answers.add(what, error)
            return None
        self.answers.add(what, answer)
        return answer

    def _call(self) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while not self.stopping.is_set():
                answer = self._send(http, "call", "GET", **self.call())
                if answer is not None and answer.status_code == 200 and answer.content != self.expected_call:
                    with self.answers.lock:
                        self.answers.unexpected.append("call: the answer to the same request has other bytes")
                self.stopping.wait(0.7)


def statuses(counts: Counter) -> Iterator[tuple[str, str, int]]:
    """(what, status, how often), sorted."""
    for (what, status), count in sorted(counts.items()):
        yield what, status, count
