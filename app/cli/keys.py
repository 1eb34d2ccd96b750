"""`anamorph keys create | list | revoke`: opens the database directly, so the first key needs no key."""

import json
import os
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.cli.serve import Data, choose, open_data
from app.core.settings import settings
from app.core.store import keys as store
from app.core.store.database import reading, transaction

keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


@keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the key, for example where it is used.")],
    tenant: Annotated[
        str, typer.Option(help="Tenant of the key: it sees the datasets, models and jobs of this tenant only.")
    ] = store.LOCAL,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="Scope of the key: read, write, tenant-admin (makes keys of its tenant) or admin (of all tenants). "
            "Repeat the option for several.",
            show_default="read, write",
        ),
    ] = None,
    days: Annotated[float | None, typer.Option(min=0, help="Days until the key expires.", show_default="never")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Save the key to DATA/key, where the commands on this machine read it.")
    ] = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it. It cannot be printed again."""
    choose(ANAMORPH_DATA_DIR=data)
    open_data(settings())
    with transaction() as conn:
        token, row = store.mint(conn, tenant, name, scope or ("read", "write"), days)
    if save:
        file = settings().data_dir / "key"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
            handle.write(token)
    typer.echo(json.dumps({"key": token} | row) if as_json else token)


@keys.command("list")
def list_(data: Data = None, as_json: Json = False) -> None:
    """List all keys without their secrets."""
    choose(ANAMORPH_DATA_DIR=data)
    open_data(settings())
    with reading() as conn:
        rows = store.every(conn)
    if as_json:
        typer.echo(json.dumps({"data": rows}))
        return
    table = Table("id", "name", "tenant", "scopes", "made", "last used", "state")
    for row in rows:
        times = (_day(row["created_at"]), _day(row["last_used_at"]))
        table.add_row(row["id"], row["name"], row["tenant"], ", ".join(row["scopes"]), *times, _state(row))
    Console().print(table)


@keys.command()
def revoke(ident: Annotated[str, typer.Argument(metavar="ID")], data: Data = None, as_json: Json = False) -> None:
    """Revoke a key: it is refused from now on."""
    choose(ANAMORPH_DATA_DIR=data)
    open_data(settings())
    with transaction() as conn:
        row = store.revoke(conn, ident)
    typer.echo(json.dumps(row) if as_json else f"{row['id']} ({row['name']}) is revoked.")


def _day(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d") if seconds else ""


def _state(row: dict[str, Any]) -> str:
    if row["revoked_at"]:
        return "revoked"
    return f"until {_day(row['expires_at'])}" if row["expires_at"] else "valid"
