"""Writes docs/reference.md from the program itself: `python docs/reference.py`. A test compares the two."""

import re
import sys
from pathlib import Path
from typing import Any

import typer.main

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.cli.main import cli
from app.core.catalog import load, spoken
from app.core.catalog.builtin_datasets import BUILTINS, Builtin
from app.core.catalog.builtin_models import BUILTIN_MODELS
from app.core.catalog.describe import describe
from app.core.errors import CODES
from app.core.oracles import Oracle
from app.core.settings import Settings
from app.main import create_app

FILE = Path(__file__).with_suffix(".md")
BUILTIN_HEADS = ("dataset", "what it is", "layout", "size; other sizes", "images", "classes", "licence")
DEFENCES, DETECTORS = load()["defences"], load()["detectors"]
SECRET = re.compile("key|secret|password")

SETTINGS = {
    "data_dir": "Folder of everything embedded: database, blobs, logs, the broker's socket.",
    "database_url": "`postgresql://user:password@host/name` or `sqlite:////path`; empty: a file in the data folder.",
    "broker_url": "`redis://host:6379/0` of a Valkey or Redis; empty: a private one on a socket in the data folder.",
    "blobs_url": "`s3://bucket/prefix` (credentials from `AWS_*`) or `file:///folder`; empty: in the data folder.",
    "blob_cache_bytes": "How much of an object store's blobs a worker keeps on its disk.",
    "database_pool": "Connections a process keeps to the database.",
    "host": "Address the web front listens on. Other than loopback needs an API key.",
    "port": "Port of the web front; 0 takes any free one.",
    "public_url": "Address that clients see, where it differs (behind a proxy).",
    "allowed_hosts": "JSON list of Host headers that are answered.",
    "require_keys": "Whether every request needs an API key; always so off the loopback address.",
    "bootstrap_key": "A key with every right, given from outside, for a service that has none yet.",
    "log_level": "debug, info, warning or error.",
    "log_json": "Log lines as JSON.",
    "max_body_bytes": "Largest request body (uploads of datasets).",
    "max_model_bytes": "Largest file of a model to import.",
    "max_json_bytes": "Largest JSON body.",
    "max_image_bytes": "Largest encoded image.",
    "max_pixels": "Most pixels of an image.",
    "max_side": "Longest side of an image.",
    "max_archive_members": "Most files in an uploaded archive.",
    "max_archive_bytes": "Most bytes an uploaded archive may unpack to.",
    "rate_limit": "Requests per key or address, e.g. `100/second`.",
    "max_jobs_per_tenant": "Queued and running jobs a tenant may have.",
    "max_passes_per_job": "Passes through models that one report may cost, computed before it is accepted.",
    "max_bytes_per_tenant": "Bytes of datasets and models a tenant may have.",
    "idempotency_hours": "How long an `Idempotency-Key` is remembered.",
    "lease_seconds": "How long a job stays with a worker that no longer reports.",
    "sweep_seconds": "How often lost jobs are looked for.",
    "max_failures": "Deaths of its worker that a job survives without progress between them.",
    "cancel_grace_seconds": "How long a cancelled job may take to stop before it is killed.",
    "release_grace_seconds": "How long a job may take to save itself when its worker stops.",
    "checkpoint_seconds": "Time between checkpoints of a training.",
    "checkpoint_bytes": "Most bytes of the checkpoints kept along a training to be forked from; the earliest go first.",
    "checkpoint_days": "How long the checkpoints of a job that has ended stay; its model and snapshots stay longer.",
    "job_niceness": "How much trainings give way to the calls on the same machine (0 to 19).",
    "job_memory_bytes": "Address space of a job's process; empty: no limit.",
    "call_timeout_seconds": "How long a client of a call waits.",
    "call_queue_limit": "Images of calls that may wait; beyond, 503 with Retry-After.",
    "call_batch": "Most images in a micro-batch.",
    "calls_in_flight": "Micro-batches on their way at a time for each web front.",
    "device": "`auto`, `cpu`, `cuda` or `cuda:1`.",
    "oracles": "Models elsewhere that may be attacked: JSON of name to URL or object; see Settings of an oracle.",
    "executor": "What computes calls on the CPU where no gradient is asked for: torch, or onnx (ONNX Runtime: faster, "
    "but slow to load a model the first time). Have it the same everywhere: the two differ in their last bits.",
    "train_threads": "Threads of a training on the CPU; 0: the cores less one.",
    "infer_threads": "Threads of an inference worker on the CPU; 0: the cores less one.",
    "resident_bytes": "Memory of the models that an inference worker keeps loaded.",
}


def main() -> str:
    return "\n".join(
        [
            "# Reference\n\nWritten by `make catalog` from the program itself; do not edit.\n",
            *section("Commands", ("command", "what it does"), commands()),
            *section("Settings", ("environment variable", "default", "meaning"), settings()),
            *section("Routes", ("route", "what it does"), routes()),
            *section("Built-in datasets", BUILTIN_HEADS, builtins()),
            *section("Built-in models", ("model", "what it is", "size", "classes", "licence"), builtin_models()),
            *section("Families", ("family", "what it is", "layouts", "operations"), families()),
            *options("Settings of the families", {n: e["config"] for n, e in load()["families"].items()}),
            *section("Attacks", ("method", "what it is", "norms", "on models that have"), attacks()),
            *options("Settings of the attacks", {n: e["params"] for n, e in load()["attacks"].items()}),
            *section("Defences", ("stage or detector", "what it does"), stages()),
            *options("Settings of the defences", {n: e["params"] for n, e in (DEFENCES | DETECTORS).items()}),
            *options("Settings of an oracle", {"ANAMORPH_ORACLES": Oracle.model_json_schema()}),
            *section("Operations", ("operation", "what it does", "needs", "takes", "gives"), operations()),
            *section("Errors", ("code", "status", "title"), errors()),
        ]
    )


def section(title: str, heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [f"## {title}\n", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows), ""]


def commands() -> list[tuple[str, ...]]:
    found = []

    def walk(name: str, command: Any) -> None:
        if hasattr(command, "commands"):
            for word, inner in command.commands.items():
                walk(f"{name} {word}", inner)
        else:
            found.append((f"`{name}{usage(command)}`", command.help or ""))

    walk("anamorph", typer.main.get_command(cli))
    return found


def usage(command: Any) -> str:
    words = ""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            words += f" {parameter.name.upper()}"
        elif not parameter.hidden:
            words += f" [{parameter.opts[0]}]"
    return words


def settings() -> list[tuple[str, ...]]:
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", None) else f"`{field.default}`"
        variable = field.validation_alias or f"ANAMORPH_{name.upper()}"
        rows.append((f"`{variable}`", default, SETTINGS[name]))
    return rows


def routes() -> list[tuple[str, ...]]:
    paths = create_app().openapi()["paths"]
    return [
        (f"`{method.upper()} {path}`", operation.get("summary", ""))
        for path, methods in paths.items()
        for method, operation in methods.items()
    ]


def builtins() -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", about.title, about.layout, size(about), str(about.count), ", ".join(about.classes or ()),
         about.licence)
        for name, about in BUILTINS.items()
    ]  # fmt: skip


def builtin_models() -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", about.title, f"{about.height}x{about.width}x{about.channels}", str(about.classes), about.licence)
        for name, about in BUILTIN_MODELS.items()
    ]


def size(about: Builtin) -> str:
    """Height x width x channels, and between which sides `image_size` may choose."""
    usual = f"{about.height}x{about.width}x{about.channels}"
    return f"{usual}; {about.sizes[0]} to {about.sizes[1]}" if about.sizes else usual


def families() -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", entry["summary"], ", ".join(entry["layouts"]), ", ".join(entry["operations"]))
        for name, entry in load()["families"].items()
    ]


def attacks() -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", entry["summary"], ", ".join(entry["norms"]), ", ".join(entry["victims"]))
        for name, entry in load()["attacks"].items()
    ]


def stages() -> list[tuple[str, ...]]:
    return [
        (f"`{name}`" + (" (detector)" if name in DETECTORS else ""), entry["summary"])
        for name, entry in (DEFENCES | DETECTORS).items()
    ]


def operations() -> list[tuple[str, ...]]:
    return [
        (f"`{name}`", entry["summary"], ", ".join(map(spoken, entry["needs"])), entry["takes"], entry["gives"])
        for name, entry in load()["operations"].items()
    ]


def options(title: str, schemas: dict[str, dict]) -> list[str]:
    lines = [f"## {title}\n"]
    for name, schema in schemas.items():
        rows = [
            (f"`{field}`", describe(spec, schema), shown(spec), spec.get("description", ""))
            for field, spec in schema.get("properties", {}).items()
        ]
        lines += [f"### {name}\n", *section("", ("setting", "takes", "default", "meaning"), rows)[1:]]
    return lines


def shown(spec: dict) -> str:
    if "default" not in spec:
        return "needed"
    return "from the data" if spec["default"] is None else f"`{spec['default']}`"


def errors() -> list[tuple[str, ...]]:
    return [(f"`{code}`", str(error.status), error.title) for code, error in CODES.items()]


if __name__ == "__main__":
    FILE.write_text(main())
