"""What an inference worker says over the broker, what it hears, and that it ends when its computation hangs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgpack
import pytest
import redis

from app.core.calls.messages import GONE, LIVE, LIVE_SECONDS, pack_gone
from app.core.jobs import queue
from workers.inference import liveness
from workers.inference.lane import Current
from workers.inference.liveness import HUNG, GoneListener, Pulse

ROOT = Path(__file__).parents[3]
HANGING = """
import sys, time
from workers.inference import liveness
from workers.inference.lane import Current, Lane, Turn

class Host:
    models = type("Models", (), {"digests": []})
    def missing(self, call): return None
    def execute(self, calls, turn):
        turn.take()
        print("hangs", flush=True)
        time.sleep(600)  # without a check

import msgpack, threading
liveness.HANG_SECONDS, liveness.BEAT_SECONDS = 0.5, 0.1
Current.use(Lane(Host(), print, 2))
liveness.Pulse("me", ["infer"]).start()
Current.lane.receive(msgpack.packb({"reply_to": "r", "calls": [{"id": 1, "operation": "attack", "seconds_left": 0.1}]}))
"""


class Lane:
    """What the threads beside a lane ask of it."""

    late, busy_seconds = 0.0, 1.5
    turns = type("Turns", (), {"holder": None})

    def __init__(self):
        self.gone, self.stopped = [], False
        self.host = type("Host", (), {"models": type("Models", (), {"digests": ["abc"]})})

    def overdue(self) -> float:
        return self.late

    def forget(self, reply_to, numbers) -> None:
        self.gone.append((reply_to, numbers))

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def broker(valkey, monkeypatch):
    monkeypatch.setenv("BROKER_URL", valkey.url)
    queue.settings.cache_clear()
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        yield client
    queue.settings.cache_clear()


@pytest.fixture
def lane(monkeypatch):
    monkeypatch.setattr(Current, "lane", lane := Lane())
    return lane


def eventually(condition):
    until = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def test_a_worker_renews_its_key_and_removes_it_when_it_stops(broker, lane):
    pulse = Pulse("host:1", ["infer"])
    pulse.start()
    state = msgpack.unpackb(eventually(lambda: broker.get(f"{LIVE}host:1")))
    assert state == {"queues": ["infer"], "loaded": True, "late": 0.0, "busy": 1.5, "models": ["abc"]}
    assert 0 < broker.ttl(f"{LIVE}host:1") <= LIVE_SECONDS
    pulse.stop()
    pulse.join(60)
    assert lane.stopped and not broker.exists(f"{LIVE}host:1")


def test_a_worker_lives_while_it_imports_torch(broker, monkeypatch):
    monkeypatch.setattr(Current, "lane", None)
    Pulse("host:1", ["infer"]).beat()
    assert msgpack.unpackb(broker.get(f"{LIVE}host:1")) == {"queues": ["infer"], "loaded": False, "late": 0.0}


def test_a_broker_that_is_gone_is_no_reason_to_end(valkey, broker, lane):
    pulse = Pulse("host:1", ["infer"])
    valkey.stop()
    pulse.beat()
    assert not pulse.answers


def test_a_worker_ends_when_its_computation_is_long_past_its_deadlines(broker, lane, monkeypatch):
    ended = []
    monkeypatch.setattr(liveness, "end_process", lambda turn, late: ended.append(late))
    lane.late = liveness.HANG_SECONDS - 1
    Pulse("host:1", ["infer"]).beat()
    assert msgpack.unpackb(broker.get(f"{LIVE}host:1"))["late"] == lane.late and not ended
    lane.late = liveness.HANG_SECONDS + 1
    Pulse("host:1", ["infer"]).beat()
    assert ended == [lane.late]


def test_a_process_whose_computation_hangs_is_gone(broker, valkey):
    environment = os.environ | {"BROKER_URL": valkey.url, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == HUNG, errors.decode()[-2000:]
    assert output.startswith(b"hangs") and b"lane.hangs" in errors + output and b"attack" in errors + output
    assert b"most recent call first" in errors, "it says where"
    assert broker.exists(f"{LIVE}me"), "calls wait for the process that replaces it"


def test_news_of_clients_that_left_reach_the_lane(broker, lane, monkeypatch):
    listener = GoneListener()
    listener.start()
    eventually(lambda: broker.publish(GONE, pack_gone("replies:x", [1, 2])))
    eventually(lambda: lane.gone)
    assert lane.gone[0] == ("replies:x", [1, 2])
    listener.stop()
    listener.join(60)


def test_news_that_come_before_the_host_is_loaded_are_kept(lane, monkeypatch):
    listener = GoneListener()
    monkeypatch.setattr(Current, "lane", None)
    listener.hear(pack_gone("r", [1]))
    monkeypatch.setattr(Current, "lane", lane)
    listener.hear(pack_gone("r", [2]))
    assert lane.gone == [("r", [1]), ("r", [2])]
