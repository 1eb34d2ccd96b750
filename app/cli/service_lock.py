"""A running service: the lock on its data folder, its address, the socket of its broker."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

UNIX_PATH_BYTES = 100  # the kernel's limit is 104 on macOS and 108 on Linux
PROBE_BYTES = 1 << 20
UNUSABLE = {
    errno.EROFS: "is on a read-only file system",
    errno.EACCES: "is not writable for this user",
    errno.EPERM: "is not writable for this user",
    errno.EEXIST: "is a file",
    errno.ENOTDIR: "lies below a file",
    errno.ENOSPC: "has no space left",
    errno.EDQUOT: "has no space left: the quota is used up",
}
PLAIN = re.compile(r"[\w./+-]+", re.ASCII)


class CannotStart(Exception):
    """The service cannot start on this machine or with these options; the message says what to do (exit status 2)."""


def check_folder(folder: Path) -> None:
    """Makes the data folder. Raises CannotStart unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        what = UNUSABLE.get(error.errno or 0, f"cannot be used ({error.strerror})")
        raise CannotStart(f"The data folder {folder} {what}. Mend that, or use another folder: --data DIR.") from error


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Callable[..., None]]:
    """Holds the data folder for this process; the function given publishes how to reach the service, for `running`."""
    check_folder(folder)
    with _lock_file(folder).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                raise CannotStart(
                    f"The file system of {folder} has no file locks ({error.strerror}), which the database needs. "
                    "Use a folder on a local disk: --data DIR."
                ) from error
            other = running(folder) or {}
            raise CannotStart(
                f"Anamorph is already running on {folder} (process {other.get('pid', '?')}, {other.get('url', '?')}). "
                "Stop it, or use another folder: --data DIR."
            ) from None

        def publish(**facts: Any) -> None:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), **facts}))
            file.flush()

        publish()
        yield publish


def running(folder: Path) -> dict[str, Any] | None:
    """What the service on this data folder published: pid, url, broker_url, ready; None when there is none."""
    try:
        with _lock_file(folder).open() as file:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None  # nobody holds it
            return json.loads(file.read() or "{}")
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lock_file(folder: Path) -> Path:
    return folder / "service.lock"


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen_on(host: str, port: int) -> socket.socket:
    """The bound socket of the web front. The supervisor keeps it, so a restarted front loses no connection."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise CannotStart(
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another port; --port 0 takes any free one."
        ) from error
    return listener


def broker_socket(folder: Path) -> Path:
    """A path for the broker's socket: in the data folder, or in a private one where that is too long or odd."""
    path = folder / "broker.sock"
    if len(os.fsencode(path)) > UNIX_PATH_BYTES or not PLAIN.fullmatch(str(path)):
        name = f"anamorph-{os.getuid()}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
        short = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / name
        if len(os.fsencode(short)) > UNIX_PATH_BYTES - 12:
            short = Path("/tmp") / name
        short.mkdir(mode=0o700, exist_ok=True)
        if short.stat().st_uid != os.getuid() or short.stat().st_mode & 0o077:
            raise CannotStart(f"{short} is open to other users. Remove it, or use a data folder with a shorter path.")
        path = short / "broker.sock"
    return path


def address(host: str, port: int) -> str:
    """Where this machine's browser finds the web front."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
