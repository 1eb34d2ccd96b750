"""A room computes like a function, and whatever its child does costs the caller an error and nobody else anything."""

import os
import socket
import subprocess
import sys
import threading
import time

import msgpack
import numpy as np
import pytest

from app.core.errors import DeadlineExceeded, InvalidRequest
from app.core.settings import settings
from models import deadline
from workers.sandbox.pipe import Damaged, pack, read
from workers.sandbox.room import Broken, Late, NeedsMemory, Raised, Room

BODIES = "tests.workers.sandbox.bodies"
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has seccomp and heeds RLIMIT_AS")


@pytest.fixture
def room():
    room = Room(BODIES)
    yield room
    room.close()


def fields_of(pid: int) -> dict[str, int]:
    """The numbers of /proc/PID/status in KiB, by name."""
    with open(f"/proc/{pid}/status") as file:
        lines = (line.split() for line in file)
        return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


def replaced(room: Room, before: int) -> bool:
    """Whether another child answers now."""
    return room.call("echo", 1) == [1] and room.pid != before


def test_plain_values_and_arrays_come_back_as_they_went(room):
    values = [None, True, 3, 2.5, "text", b"bytes", [1, [2]], {"key": "value"}]
    assert room.call("echo", *values) == values
    long = [b"0" * 100_000, [b"1" * 5000], {"key": b"2" * 70_000}]
    assert room.call("echo", *long) == long
    for array in (np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.uint8), np.float32(3), np.array([True]),
                  np.random.default_rng(0).normal(size=(3, 700_000)), np.arange(6)[::2]):  # fmt: skip
        (answer,) = room.call("echo", array)
        assert answer.dtype == array.dtype and np.array_equal(answer, array) and answer.shape == array.shape


def test_objects_do_not_travel(room):
    with pytest.raises(TypeError):
        room.call("echo", np.array([object()]))
    with pytest.raises(TypeError):
        room.call("echo", object())


def test_an_exception_comes_back_by_name(room):
    with pytest.raises(Raised, match="too blue") as caught:
        room.call("refuse", "too blue")
    assert caught.value.kind == "ValueError" and caught.value.status == 422


def test_a_late_call_is_a_504_and_the_next_child_answers(room):
    for function, arguments in (("spin", ()), ("sleep", (600,))):
        before = room.call("numbers")["pid"]
        with pytest.raises(Late, match=r"within 0\.3 s") as caught:
            room.call(function, *arguments, seconds=0.3)
        assert isinstance(caught.value, DeadlineExceeded) and caught.value.problem()["code"] == "deadline-exceeded"
        assert replaced(room, before)


def test_a_caller_that_gives_up_ends_the_call(room):
    def give_up():
        if time.monotonic() > begun + 0.2:
            raise deadline.Abandoned("nobody waits")

    before, begun = room.call("numbers")["pid"], time.monotonic()
    with deadline.checking(give_up), pytest.raises(deadline.Abandoned):
        room.call("sleep", 600)
    assert replaced(room, before)


def test_a_crash_is_a_422_and_the_next_child_answers(room):
    before = room.call("numbers")["pid"]
    with pytest.raises(Broken, match="ended") as caught:
        room.call("leave", 3)
    assert isinstance(caught.value, InvalidRequest)
    assert replaced(room, before)


@linux
def test_a_violation_of_memory_is_a_422(room):
    room.call("echo")
    with pytest.raises(Broken, match="signal 11"):
        room.call("crash")
    assert room.call("echo", 1) == [1]


@linux
def test_memory_ends_at_the_limit(room):
    room.call("echo")
    before, own = room.pid, fields_of(os.getpid())["VmRSS"]
    with pytest.raises(NeedsMemory, match="more than 2 GiB"):
        room.call("take", settings().sandbox_bytes)
    assert replaced(room, before)
    assert room.call("take", 32 << 20) == (32 << 20) // 4096
    assert fields_of(room.pid)["VmPeak"] * 1024 <= settings().sandbox_bytes
    assert fields_of(os.getpid())["VmRSS"] < own + (64 << 10)


@linux
def test_memory_taken_in_small_pieces_ends_at_the_limit():
    room = Room(BODIES, memory=256 << 20)
    room.call("echo")
    peak, stop = [0], threading.Event()

    def watch(pid: int) -> None:
        while not stop.wait(0.01):
            try:
                peak[0] = max(peak[0], fields_of(pid)["VmSize"])
            except (OSError, ValueError, KeyError):  # it ended
                return

    watcher = threading.Thread(target=watch, args=(room.pid,))
    watcher.start()
    with pytest.raises(NeedsMemory):
        room.call("hoard", 1 << 20)
    stop.set()
    watcher.join()
    room.close()
    assert 0 < peak[0] * 1024 <= 256 << 20


def test_an_answer_above_its_limit_is_not_taken():
    room = Room(BODIES, answer_bytes=1 << 20)
    assert room.call("large", 1000).nbytes == 1000
    with pytest.raises(NeedsMemory, match="1048576"):
        room.call("large", 2 << 20)
    assert room.call("echo", 1) == [1]
    room.close()


@linux
def test_nothing_outside_can_be_reached(room, tmp_path):
    decoy = tmp_path / "decoy.txt"
    decoy.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        tries = room.call("attempts", str(decoy), server.getsockname()[1], os.getpid())
    assert room.sealed
    assert {name: answer for name, answer in tries.items() if answer != "PermissionError"} == {}
    assert decoy.read_text() == "secret" and os.listdir(tmp_path) == ["decoy.txt"]


@linux
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_NOFILE", "RLIMIT_FSIZE", "RLIMIT_CORE"])
def test_limits_cannot_be_lifted(room, name):
    assert room.call("widen", name) == "refused"


def test_the_environment_has_no_settings(room, monkeypatch):
    for name in ("DATABASE_URL", "BROKER_URL", "ANAMORPH_DATA_DIR", "ANAMORPH_BOOTSTRAP_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in room.call("numbers")["environment"].values()


def test_threads_work_inside(room):
    assert room.call("in_threads") == [0, 1, 2, 3]


def test_every_child_runs_the_first_function_once():
    room = Room(BODIES, first=("remember", 7))
    assert room.call("remembered") == room.call("remembered") == [7]
    with pytest.raises(Late):
        room.call("spin", seconds=0.3)
    assert room.call("remembered") == [7]
    room.close()


def test_calls_from_many_threads_take_turns(room):
    answers = []
    threads = [threading.Thread(target=lambda n=n: answers.append((n, room.call("echo", n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(n, [n]) for n in range(8)]


def test_a_room_that_is_dropped_ends_its_child(room):
    other = Room(BODIES)
    other.call("echo")
    process = other._child[0].result().process
    del other
    assert process.wait(60) is not None


@linux
def test_a_child_dies_with_its_parent(tmp_path):
    code = (
        "import os, threading, time\nfrom workers.sandbox.room import Room\n"
        f"room = Room({BODIES!r}); room.call('echo'); print(room.pid, flush=True)\n"
        "threading.Thread(target=room.call, args=('spin',), daemon=True).start(); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    child = int(next(line for line in parent.stdout if line.strip().isdigit()))
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 60
    while os.path.exists(f"/proc/{child}") and time.monotonic() < until:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}")


@pytest.mark.parametrize("change", ["length", "size", "kind", "index", "extension"])
def test_a_damaged_frame_is_noticed(change):
    def frame(sizes, *place, code=1):
        head = msgpack.packb(sizes) + msgpack.packb(msgpack.ExtType(code, msgpack.packb(place)))
        return len(head).to_bytes(8, "little") + head + bytes(8)

    frames = {
        "length": (1 << 40).to_bytes(8, "little"),
        "size": frame([8], 0, "<f4", [1 << 40]),
        "kind": frame([8], 0, "|O", [1]),
        "index": frame([8], 5, "<f8", [1]),
        "extension": frame([8], 0, "<f8", [1], code=7),
    }
    assert np.array_equal(_read(b"".join(pack(np.arange(3)))), np.arange(3))
    with pytest.raises(Damaged):
        _read(frames[change])


def _read(data: bytes):
    place = [0]

    def fill(buffer: memoryview) -> None:
        part = data[place[0] : place[0] + len(buffer)]
        if len(part) < len(buffer):
            raise EOFError
        buffer[:], place[0] = part, place[0] + len(part)

    return read(fill, 1 << 20)
