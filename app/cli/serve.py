"""`anamorph up`, `web` and `worker`: the service on one machine, or its parts one by one."""

import os
import socket
import sys
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from app.cli.service_lock import CannotStart, address, broker_socket, check_folder, claimed, is_loopback, listen_on
from app.core.errors import AnamorphError
from app.core.settings import Settings, settings

Data = Annotated[
    Path | None, typer.Option("--data", help="Folder of the database, blobs and logs.", show_default="./anamorph-data")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes any free one.", show_default="8000")]

SERVER = {
    "factory": True,
    "http": "app.api.http.connections:Connection",
    "ws": "none",
    "log_config": None,  # its log lines go through ours
    "access_log": False,
    "server_header": False,
    "timeout_graceful_shutdown": 5,
}
"""Options of uvicorn."""


def up(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the API page in a browser.")] = False,
    quiet: Annotated[bool, typer.Option(help="Do not print the output of the processes; DATA/logs has it.")] = False,
) -> None:
    """Run the whole service on this machine: broker, workers and web front. Ctrl-C stops it."""
    choose(ANAMORPH_DATA_DIR=data, ANAMORPH_HOST=host, ANAMORPH_PORT=port)
    options = settings()
    listener = listen_on(options.host, options.port)
    own_broker = not os.environ.get("BROKER_URL")
    choose(
        ANAMORPH_PORT=listener.getsockname()[1],
        BROKER_URL=f"redis+socket://{broker_socket(options.data_dir)}" if own_broker else None,
        ANAMORPH_REQUIRE_KEYS=None if is_loopback(options.host) else "true",
    )
    options = settings()
    with claimed(options.data_dir) as publish:
        raise typer.Exit(_supervise(options, listener, own_broker, publish, quiet, open_browser))


def _supervise(
    options: Settings, listener: socket.socket, own_broker: bool, publish, quiet: bool, open_browser: bool
) -> int:
    from app.cli.logs import Logs
    from app.cli.processes import parts
    from app.cli.supervisor import Supervisor

    url = options.public_url or address(options.host, options.port)
    facts = {"url": address(options.host, options.port), "broker_url": options.broker_url}
    publish(**facts, ready=False)

    open_data(options)
    keys = "" if is_loopback(options.host) else _require_key(options)
    logs = Logs(options.data_dir / "logs", quiet)
    logs.say(f"data     {options.data_dir}")
    logs.say(f"address  {url}  (starting ...)")
    if keys:
        logs.say(f"API key  {keys}")
    supervisor = Supervisor(parts(options, listener, own_broker), logs, options.ready_seconds)

    def when_ready() -> None:
        publish(**facts, ready=True)
        logs.say(f"ready    {url}  Ctrl-C stops it.")
        if open_browser:
            webbrowser.open(url)

    return supervisor.run(when_ready)


def web(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    fd: Annotated[int | None, typer.Option(help="File descriptor of a listening socket to use.", hidden=True)] = None,
) -> None:
    """Run only the web front, with DATABASE_URL, BROKER_URL and BLOBS_URL."""
    import uvicorn

    from app.core import logs

    choose(ANAMORPH_DATA_DIR=data, ANAMORPH_HOST=host, ANAMORPH_PORT=port)
    options = settings()
    logs.configure()
    open_data(options)
    if fd is None and not is_loopback(options.host):
        _require_key(options)
        choose(ANAMORPH_REQUIRE_KEYS="true")
    listener = socket.socket(fileno=fd) if fd is not None else listen_on(options.host, options.port)
    uvicorn.Server(uvicorn.Config("app.main:create_app", **SERVER)).run(sockets=[listener])


def worker(
    queues: Annotated[
        str, typer.Option(help="Comma-separated: infer (calls), train, report (minutes), light (seconds).")
    ],
    data: Data = None,
) -> None:
    """Run one worker for the given queues, with DATABASE_URL, BROKER_URL and BLOBS_URL."""
    from app.cli.processes import QUEUES, worker_command

    names = [name.strip() for name in queues.split(",") if name.strip()]
    if not names or not set(names) <= set(QUEUES):
        raise CannotStart(f"--queues must be a comma-separated list of {', '.join(QUEUES)}; you sent {queues!r}.")
    choose(ANAMORPH_DATA_DIR=data)
    open_data(settings())
    sys.stdout.flush()
    command = worker_command(names)
    os.execv(command[0], command)


def choose(**variables: object) -> None:
    """Sets options of the command line as environment variables, which all child processes inherit."""
    os.environ.update({name: str(value) for name, value in variables.items() if value is not None})
    settings.cache_clear()
    settings()


def open_data(options: Settings) -> None:
    """Makes the data folder and brings its database to this release. Raises CannotStart for what cannot be used."""
    from alembic.util import CommandError

    from app.core.store.database import migrate, sqlite_file

    check_folder(options.data_dir)
    try:
        migrate()
    except CommandError as error:
        raise CannotStart(
            "The database was written by a later release of Anamorph. Update this one, or use another folder: "
            "--data DIR."
        ) from error
    except AnamorphError as error:
        if sqlite_file() is None:  # a server, which may come back
            raise
        raise CannotStart(f"{error.detail} ({sqlite_file()}) {error.remedy or ''}".strip()) from error


def _require_key(options: Settings) -> str:
    """Where the keys of a service on the network are. Raises CannotStart when there is no valid key."""
    from app.core.store.database import now, reading
    from app.core.store.keys import every

    if options.bootstrap_key is not None:
        return "the one in ANAMORPH_BOOTSTRAP_KEY"
    with reading() as conn:
        time = now(conn)
        valid = [key for key in every(conn) if not key["revoked_at"] and (key["expires_at"] or time + 1) > time]
    if not valid:
        raise CannotStart(
            f"Listening on {options.host} is open to the network and needs an API key. Create one with "
            f"`anamorph keys create NAME --data {options.data_dir}`, or listen on this machine only: --host 127.0.0.1."
        )
    file = options.data_dir / "key"
    return f"in {file}" if file.exists() else f"{len(valid)} valid; `anamorph keys create NAME` makes another"
