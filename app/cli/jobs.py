"""`anamorph jobs ls | show | cancel | resume`."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.cli.client import Client
from app.cli.commands import Json, Key, Url

jobs = typer.Typer(help="List, show, cancel and resume jobs.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="Id of the job.")]


@jobs.command()
def ls(
    status: Annotated[
        str | None, typer.Option(help="Only jobs with this status: queued, running, succeeded, failed or canceled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Maximum number of jobs.")] = 20,
    as_json: Json = False,
    url: Url = None,
    key: Key = None,
) -> None:
    """List jobs, newest first."""
    page = Client(url, key).get("/v1/jobs", limit=limit, **({"status": status} if status else {}))
    if as_json:
        typer.echo(json.dumps(page))
        return
    table = Table("id", "kind", "status", "progress", "attempt")
    for job in page["data"]:
        table.add_row(job["id"], job["kind"], job["status"], _share(job), str(job["attempt"]))
    Console().print(table)


@jobs.command()
def show(job_id: Id, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Show one job."""
    _print(Client(url, key).get(f"/v1/jobs/{job_id}"), as_json)


@jobs.command()
def cancel(job_id: Id, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Cancel a job. A running job stops at its next step and keeps its last checkpoint."""
    _print(Client(url, key).ask("POST", f"/v1/jobs/{job_id}/cancel").json(), as_json)


@jobs.command()
def resume(job_id: Id, as_json: Json = False, url: Url = None, key: Key = None) -> None:
    """Continue a canceled or failed job from its last checkpoint."""
    _print(Client(url, key).ask("POST", f"/v1/jobs/{job_id}/resume").json(), as_json)


def _share(job: dict[str, Any]) -> str:
    progress = job.get("progress") or {}
    return f"{progress.get('images', 0)}/{progress['total']}" if progress.get("total") else ""


def _print(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(job))
        return
    table = Table(show_header=False)
    for name, value in job.items():
        if value not in (None, {}, []) and name != "links":
            table.add_row(name, value if isinstance(value, str) else json.dumps(value))
    Console().print(table)
