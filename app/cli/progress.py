"""A job on the terminal: a progress bar from its events, and a table of its metrics."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from app.cli.client import Client, succeeded

console = Console(stderr=True)  # standard output has results only


def bars() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )


def watch(client: Client, job: dict[str, Any], title: str, progress: Progress) -> dict[str, Any]:
    """Shows `job` as a bar of `progress` until it ends. Raises the error of a job that did not succeed."""
    bar = progress.add_task(title, total=None, note=job["status"])
    for job in client.follow(job["id"]):  # noqa: B020
        step = job.get("progress") or {}
        progress.update(bar, completed=step.get("images") or 0, total=step.get("total"), note=_note(job))
    total = (job.get("progress") or {}).get("total")
    progress.update(bar, completed=total or 0, total=total, note=job["status"])
    return succeeded(job)


def watch_measurement(client: Client, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Waits until the model that a training has made is measured; returns the training with the metrics."""
    measurement = job["result"].get("measurement") or {}
    if measurement.get("status") != "measuring":
        return job
    watch(client, client.get(measurement["job"]), f"measuring {job['result']['model']}", progress)
    return client.get(job["links"]["self"])


def _note(job: dict[str, Any]) -> str:
    place = job.get("queue_position")
    return f"queued, number {place}" if job["status"] == "queued" and place else job["status"]


def metrics_table(title: str, metrics: dict[str, Any]) -> Table:
    table = Table("metric", "value", title=title, title_justify="left")
    for name, value in metrics.items():
        if isinstance(value, int | float):
            table.add_row(name, f"{value:.4g}")
    return table
