"""Attacks on a model behind a real HTTP server on this machine, which may fail, lie, redirect or talk too much."""

import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from app.core.calls.messages import pack_inputs
from app.core.errors import NotFound, OracleSilent
from app.core.settings import settings
from app.core.store import blobs
from models.attacks.core.remote import OracleUnavailable
from tests.workers.trainings import attempt, finish, row_of, store_dataset
from workers import codecs
from workers.jobs.job import RunningJob, Stopped
from workers.jobs.kinds import oracle as oracles
from workers.jobs.kinds import oracle_client
from workers.jobs.kinds.oracle import run_oracle
from workers.jobs.kinds.oracle_client import OracleClient, read_answer

CLASSES = ["one", "two", "three"]


def scores(images: np.ndarray) -> np.ndarray:
    """Softmax over how bright each third of an image is."""
    thirds = np.array_split(images.reshape(len(images), -1) / 255, 3, axis=1)
    logits = 40 * np.stack([third.mean(1) for third in thirds], 1)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


class Server(ThreadingHTTPServer):
    """`lives` requests are answered, then `after` happens."""

    lives, after, answers, asked, requests = 10**9, 500, "scores", 0, 0
    seen: list

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/classify?top=1000"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.requests += 1
        server.seen.append(dict(self.headers))
        server.lives -= 1
        if server.lives < 0:
            self.send_response(server.after)
            self.send_header("Location", server.url)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        images = read_images(self.headers["Content-Type"], body)
        server.asked += len(images)
        found = scores(images)
        answer = {
            "scores": lambda: {"scores": found.tolist()},
            "labels": lambda: {"labels": [CLASSES[index] for index in found.argmax(1)]},
            "classify": lambda: {"data": [{"predictions": ranked(row)} for row in found]},
            "long": lambda: {"scores": found.tolist(), "padding": "x" * 100_000},
            "short": lambda: {"scores": found.tolist()[1:]},
            "nonsense": lambda: ["?"],
        }[server.answers]()
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def ranked(row: np.ndarray) -> list[dict]:
    """What classify says of an image."""
    return [{"index": int(i), "label": CLASSES[i], "probability": row[i]} for i in (-row).argsort()]


def read_images(media: str, body: bytes) -> np.ndarray:
    if media == "application/x-npy":
        return np.load(io.BytesIO(body))
    boundary = re.search("boundary=(.*)", media).group(1).encode()
    parts = [part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n") for part in body.split(b"--" + boundary)[1:-1]]
    return np.stack([codecs.decode(part) for part in parts])


@pytest.fixture
def server(place, monkeypatch):
    monkeypatch.setattr(oracle_client, "PAUSE", 0.001)
    server = Server(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def allow(monkeypatch):
    def set_up(server: Server, **more) -> None:
        about = {"url": server.url, "classes": CLASSES, "token": "secret", **more}
        monkeypatch.setenv("ANAMORPH_ORACLES", json.dumps({"clinic": about}))
        settings.cache_clear()

    yield set_up
    monkeypatch.delenv("ANAMORPH_ORACLES", raising=False)
    settings.cache_clear()


def images(count: int = 3) -> bytes:
    draws = np.random.default_rng(0)
    return (draws.random((count, 1, 8, 8)) * 60 + 90).astype(np.uint8)


def job(**spec) -> str:
    if "dataset" not in spec:
        blobs.put("uploads/1", pack_inputs(codecs.encode_png(images(spec.pop("n", 3))), None), create_only=False)
        spec["upload"] = "uploads/1"
    about = {"oracle": "clinic", "method": "square", "params": {"eps": 0.3, "budget": 200}, "count": 4} | spec
    from app.core.jobs import state as jobs
    from app.core.store.database import transaction
    from tests.workers.trainings import TENANT

    with transaction() as conn:
        return jobs.accept(conn, tenant=TENANT, kind="oracle", spec=about)[0]["id"]


def done(job_id: str) -> dict:
    running = attempt(job_id)
    return finish(running, run_oracle(running))["result"]


@pytest.mark.parametrize("send", ["png", "npy"])
@pytest.mark.parametrize(("answers", "gives", "method"), [
    ("scores", "scores", "square"), ("classify", "scores", "square"), ("labels", "labels", "boundary"),
])  # fmt: skip
def test_an_oracle_is_fooled_by_the_very_bytes_that_are_kept(server, allow, send, answers, gives, method):
    server.answers = answers
    allow(server, send=send, answers=gives)
    eps = {"eps": 0.3} if method == "square" else {"steps": 50}
    found = done(job(method=method, params={"budget": 150, **eps}))
    assert found["complete"] and found["images"] == 3 and found["queries"] == server.asked
    assert found["fooled"] > 0 and not found["warnings"]
    kept = read_zip(blobs.get(found["artifacts"]["images.zip"]))
    before, after = scores(images()).argmax(1), scores(kept).argmax(1)
    for row, item in enumerate(found["facts"]["items"]):
        assert item["success"] == (after[row] != before[row]) and item["label"] == before[row]
        assert item["answer"] == after[row] and item["queries"] <= 150
        assert item["linf_255"] == np.abs(kept[row].astype(int) - images()[row]).max()
    assert server.seen[0]["Authorization"] == "Bearer secret"


def read_zip(data: bytes) -> np.ndarray:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return np.stack([codecs.decode(archive.read(name)) for name in archive.namelist()])


def test_an_oracle_that_falls_silent_leaves_what_was_found(server, allow, monkeypatch):
    monkeypatch.setattr(oracles, "GROUP", 2)
    allow(server, retries=1)
    whole = done(job(n=6))
    first_group, requests = sum(item["queries"] for item in whole["facts"]["items"][:2]), server.requests
    assert whole["complete"]
    server.requests, server.lives = 0, requests - 2  # it dies near the end of the last group
    partial = done(job(n=6))
    assert not partial["complete"] and "500" in partial["warnings"][0]
    assert partial["facts"]["items"][:2] == whole["facts"]["items"][:2] and first_group > 0
    assert 2 <= partial["images"] <= 6
    kept = read_zip(blobs.get(partial["artifacts"]["images.zip"]))
    assert len(kept) == partial["images"]
    answers = scores(kept).argmax(1)
    for row, item in enumerate(partial["facts"]["items"]):
        assert item["success"] <= (answers[row] != item["label"])  # nothing is claimed that was not seen


def test_the_budget_of_the_whole_job_is_kept(server, allow):
    allow(server, max_queries=1000)
    found = done(job(total_budget=40, params={"eps": "1/255", "budget": 1000}))
    assert found["queries"] == server.asked <= 40
    assert not found["complete"] and "budget" in found["warnings"][0].lower()


def test_an_oracle_that_never_answers_fails_the_job_with_a_sentence(server, allow):
    server.lives = 0
    allow(server, retries=2)
    with pytest.raises(OracleSilent) as caught:
        run_oracle(attempt(job()))
    assert "500" in caught.value.detail and server.requests == 3


@pytest.mark.parametrize(("after", "requests"), [(302, 1), (404, 1), (429, 3), (503, 3)])
def test_redirects_and_refusals_are_final_and_overload_is_retried(server, allow, after, requests):
    server.lives, server.after = 0, after
    allow(server, retries=2)
    client = OracleClient(settings().oracles["clinic"])
    with pytest.raises(OracleUnavailable) as caught:
        client(torch.from_numpy(images()))
    assert str(after) in str(caught.value) and server.requests == requests


def test_a_hiccup_is_bridged(server, allow):
    allow(server, retries=2)
    server.lives, server.after = 0, 503
    client = OracleClient(settings().oracles["clinic"], tick=lambda: setattr(server, "lives", server.requests * 9))
    assert client(torch.from_numpy(images())).shape == (3, 3)


@pytest.mark.parametrize("answers", ["long", "short", "nonsense"])
def test_answers_that_cannot_be_used_end_the_asking(server, allow, answers, monkeypatch):
    monkeypatch.setattr(oracle_client, "MAX_ANSWER", 10_000)
    server.answers = answers
    allow(server)
    with pytest.raises(OracleUnavailable):
        OracleClient(settings().oracles["clinic"])(torch.from_numpy(images()))
    assert server.requests == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"scores": [[1, 2]]}',
        b'{"scores": [["a", 2, 3]]}',
        b'{"labels": [0]}',
        b'{"data": [{}]}',
        b"9" * 5000,
    ],
)
def test_odd_answers_are_no_crash(server, allow, body):
    allow(server)
    with pytest.raises(OracleUnavailable):
        read_answer(body, 1, settings().oracles["clinic"])


def test_a_job_that_is_stopped_goes_on_where_it_was(server, allow, monkeypatch):
    monkeypatch.setattr(oracles, "GROUP", 2)
    allow(server)
    whole = done(job(n=6))

    class Stopping(RunningJob):
        @property
        def stopping(self):
            return "release" if (self.last_checkpoint or {}).get("kept", {}).get("items") else None

    job_id = job(n=6)
    running = attempt(job_id, Stopping)
    with pytest.raises(Stopped):
        run_oracle(running)
    from app.core.jobs import state as jobs
    from app.core.store.database import transaction

    with transaction() as conn:
        jobs.release(conn, running.id, running.token)
    assert done(job_id)["facts"] == whole["facts"] and row_of(job_id)["attempt"] == 2


def test_rows_of_a_dataset_are_attacked_under_their_own_labels(server, allow):
    store_dataset()
    allow(server, classes=["three", "two", "one"])
    found = done(job(dataset="small", start=2, count=3, params={"eps": 0.5, "budget": 50}))
    assert found["images"] == 3
    assert all(0 <= item["label"] < 3 for item in found["facts"]["items"])


def test_an_oracle_that_is_no_longer_allowed_is_not_asked(place):
    with pytest.raises(NotFound):
        run_oracle(attempt(job()))
