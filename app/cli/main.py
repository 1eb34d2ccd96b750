"""The `anamorph` command.

Exit status: 0 done; 1 refused or failed; 2 wrong usage, or cannot start on this machine; 3 no service answers, or it is
too busy: retry later.
"""

import json
import sys

import httpx
import typer

from app.cli import commands as remote
from app.cli import serve
from app.cli.backup import backup, restore
from app.cli.client import Unreachable
from app.cli.demo import demo
from app.cli.doctor import doctor
from app.cli.jobs import jobs
from app.cli.keys import keys
from app.cli.service_lock import CannotStart
from app.core.errors import AnamorphError, StorageDamaged

cli = typer.Typer(
    help="Train, serve and attack image models.",
    epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage or cannot start, 3 not reachable or busy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    serve.up,
    serve.web,
    serve.worker,
    demo,
    doctor,
    backup,
    restore,
    remote.train,
    remote.sample,
    remote.denoise,
    remote.attack,
):
    cli.command()(command)
cli.add_typer(jobs, name="jobs")
cli.add_typer(keys, name="keys")


def main() -> None:
    try:
        cli()
    except AnamorphError as error:
        _print_error(error.problem())
        sys.exit(3 if error.status == 503 and not isinstance(error, StorageDamaged) else 1)
    except CannotStart as error:
        _print_error({"detail": str(error), "code": "cannot-start"})
        sys.exit(2)
    except (Unreachable, httpx.TransportError) as error:
        _print_error({"detail": str(error), "code": "unreachable"})
        sys.exit(3)


def _print_error(problem: dict) -> None:
    if "--json" in sys.argv:
        print(json.dumps(problem))
    else:
        print("anamorph:", problem["detail"], problem.get("remedy", ""), file=sys.stderr)
