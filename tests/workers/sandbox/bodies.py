"""Functions for rooms: what well-behaved, slow, greedy and hostile code does."""

import ctypes
import mmap
import os
import resource
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np

kept = []


def echo(*values):
    return list(values)


def remember(value):
    kept.append(value)


def remembered():
    return kept


def sleep(seconds):
    time.sleep(seconds)


def spin():
    while True:
        pass


def take(size):
    """Takes `size` bytes and returns how many pages it touched."""
    block = np.empty(size, np.uint8)
    block[:: mmap.PAGESIZE] = 1
    return int(block[:: mmap.PAGESIZE].sum())


def refuse(text):
    raise ValueError(text)


def hoard(size):
    """Takes pieces of `size` bytes and never gives one back."""
    pieces = []
    while True:
        pieces.append(np.ones(size, np.uint8))


def crash():
    ctypes.string_at(0)


def leave(status):
    os._exit(status)


def large(size):
    return np.zeros(size, np.uint8)


def numbers():
    return {"pid": os.getpid(), "environment": dict(os.environ)}


def in_threads():
    answers = []
    threads = [threading.Thread(target=answers.append, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(answers)


def attempts(path, port, parent):
    """What each try to leave the room gives: the name of the error, or "done"."""

    def tried(action):
        try:
            action()
        except Exception as error:
            return type(error).__name__
        return "done"

    return {
        "read": tried(lambda: Path(path).read_bytes()),
        "write": tried(lambda: Path(path + ".new").write_bytes(b"1")),
        "remove": tried(lambda: os.remove(path)),
        "relative": tried(lambda: Path("new").write_bytes(b"1")),
        "list": tried(lambda: os.listdir(os.path.dirname(path))),
        "stat": tried(lambda: os.stat(path)),
        "environment of the parent": tried(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
        "connect": tried(lambda: socket.socket().connect(("127.0.0.1", port))),
        "datagram": tried(lambda: socket.socket(type=socket.SOCK_DGRAM)),
        "pair": tried(socket.socketpair),
        "program": tried(lambda: subprocess.run(["true"], check=True)),
        "fork": tried(os.fork),
        "kill the parent": tried(lambda: os.kill(parent, 0)),
        "signal": tried(lambda: signal.pidfd_send_signal(0, 9)),
    }


def widen(name):
    """Tries to lift a limit of its own."""
    try:
        resource.setrlimit(getattr(resource, name), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        return "refused"
    return "done"
