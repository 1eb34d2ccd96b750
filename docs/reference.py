"""Writes docs/reference.md from the program itself: `python docs/reference.py`. `make docs` runs it; git ignores it."""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer.main

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.cli.main import cli
from app.core.catalog import load, spell_need
from app.core.catalog.builtins import BUILTIN_MODELS, BUILTINS, Builtin
from app.core.catalog.describe import describe
from app.core.errors import CODES
from app.core.oracles import Oracle
from app.core.settings import Settings
from app.main import create_app

FILE = Path(__file__).with_suffix(".md")
SERVICE = "http://127.0.0.1:8000"

INTRODUCTION = """# Reference

Generated from the program by `make docs`. The running service has the same as an interactive page at `/docs` and as
OpenAPI 3.1 at `/v1/openapi.json`; the guides show how the parts are used together.
"""

SETTINGS = {
    "data_dir": "Folder of the embedded parts: database, blobs, logs, the broker's socket.",
    "database_url": "`postgresql://user:password@host/name` or `sqlite:////path`. Default: a file in the data folder.",
    "broker_url": "`redis://host:6379/0` of a Valkey or Redis. Default: a private Valkey in the data folder.",
    "blobs_url": "`s3://bucket/prefix` (credentials from `AWS_*`) or `file:///folder`. Default: in the data folder.",
    "blob_cache_bytes": "Maximum bytes of an object store's blobs that a worker caches on its disk.",
    "database_pool": "Connections that a process keeps open to the database.",
    "host": "Address the web front listens on. Any address but loopback requires API keys.",
    "port": "Port of the web front; 0 takes any free one.",
    "public_url": "URL that clients use, if it differs from host and port (behind a proxy).",
    "allowed_hosts": "JSON list of the Host headers that are answered; `*` allows all.",
    "allowed_origins": "JSON list of the origins whose pages may use the service from a browser, e.g. "
    '`["https://example.org"]`. `*`: any page that has an API key. Default: only pages of this service.',
    "max_connections": "Maximum open connections of a web front. Those that wait for a request give way to new ones.",
    "max_connections_per_address": "The same for each address of a client.",
    "max_header_bytes": "Maximum bytes of the address and the headers of a request.",
    "header_timeout_seconds": "Seconds in which the headers of a request must arrive.",
    "body_timeout_seconds": "Seconds in each of which spans a body must go on by 500 bytes per second on average.",
    "require_keys": "Require an API key for every request. Always on if the host is not loopback.",
    "bootstrap_key": "An API key with all scopes for a service that has no key in its database yet.",
    "log_level": "`debug`, `info`, `warning` or `error`.",
    "log_json": "Write log lines as JSON.",
    "max_body_bytes": "Maximum bytes of a request body (uploads of datasets).",
    "max_model_bytes": "Maximum bytes of the file of an imported model.",
    "max_json_bytes": "Maximum bytes of a JSON body.",
    "max_image_bytes": "Maximum bytes of an encoded image.",
    "max_pixels": "Maximum pixels of an image.",
    "call_pixels": "Maximum pixels of all images of a call, weighted by what decoding them costs: an 8-bit colour PNG "
    "counts once, images of 16 bits, with transparency or progressive ones several times.",
    "job_pixels": "The same for a call that is made a job (`Prefer: respond-async`).",
    "max_side": "Maximum side of an image, in pixels.",
    "max_archive_members": "Maximum files in an uploaded archive.",
    "max_archive_bytes": "Maximum bytes of an uploaded archive after unpacking.",
    "rate_limit": "Maximum requests for each key, or for each address without one, e.g. `100/second`.",
    "compute_seconds_per_minute": "Seconds of compute that the calls of each API key may take per minute of the clock. "
    "Calls without a key are not counted.",
    "max_jobs_per_tenant": "Maximum queued and running jobs of a tenant.",
    "max_running_jobs_per_tenant": "Maximum jobs of a tenant that run at the same time; more wait in their queue.",
    "max_job_seconds": "Maximum seconds of one run of a job.",
    "max_job_seconds_per_day": "Seconds that the jobs of a tenant may run in 24 hours before new ones are refused. "
    "Default: no limit.",
    "max_passes_per_job": "Maximum passes through models of one report; computed before the report is accepted.",
    "max_bytes_per_tenant": "Maximum bytes of the datasets and models of a tenant.",
    "idempotency_hours": "Hours for which an `Idempotency-Key` is remembered.",
    "ready_seconds": "Seconds after which `anamorph up` gives up on a start. Default: waits while its processes work.",
    "lease_seconds": "Seconds without a heartbeat after which a job is taken from its worker.",
    "sweep_seconds": "Seconds between two searches for lost jobs.",
    "max_failures": "Deaths of its worker, without progress between them, after which a job fails.",
    "cancel_grace_seconds": "Seconds a cancelled job may take to stop before its process is killed.",
    "release_grace_seconds": "Seconds a job may take to save a checkpoint when its worker stops.",
    "checkpoint_seconds": "Seconds between two checkpoints of a training.",
    "checkpoint_bytes": "Maximum bytes of the checkpoints of a training that can be forked; the earliest are deleted.",
    "checkpoint_days": "Days for which checkpoints are kept after a job ends. Models and snapshots stay.",
    "job_niceness": "Niceness (0 to 19) of trainings and reports; higher leaves more of the CPU to calls.",
    "warm_start": "Keep a process ready for the next training of each slot: starts in .3 s, takes 180 MB.",
    "job_memory_bytes": "Maximum address space of a job's process. Default: no limit.",
    "call_timeout_seconds": "Seconds after which a waiting call is answered with 504.",
    "call_queue_limit": "Maximum images of waiting calls; beyond it calls are answered with 503 and Retry-After.",
    "call_batch": "Maximum images in a micro-batch.",
    "calls_in_flight": "Micro-batches that a web front may have under way at a time.",
    "slow_call_threads": "Slow calls that an inference worker has under way at a time; they take turns to compute.",
    "call_wait_seconds": "Longest predicted wait of a call: above it, new ones are refused with 503 at once.",
    "slow_call_timeout_seconds": "The same as `call_timeout_seconds` for a call that is predicted to compute longer "
    "than 0.25 s, such as most attacks.",
    "slow_calls_in_flight": "Such calls that a web front may have under way at a time; they do not hold up the others.",
    "device": "`auto`, `cpu`, `cuda` or `cuda:1`.",
    "devices": "Devices of the jobs of a worker, e.g. `cuda:0,cuda:2`: one training at a time on each. Default: all "
    "GPUs that it sees, or the CPU.",
    "sandbox_bytes": "Memory of the sealed process in which foreign graphs and files are worked on.",
    "sandbox_seconds": "Longest call of a sealed process; a later one is killed and replaced.",
    "oracles": "Remote models that may be attacked: JSON, name to URL or to an object; see Settings of an oracle.",
    "executor": "Computes calls without gradients on the CPU with `torch`, or with `onnx` (ONNX Runtime: faster, but "
    "slow to load a model the first time). Use one for all workers: their answers differ in the last bits.",
    "train_threads": "Threads of a training on the CPU; 0: all cores but one.",
    "infer_threads": "Threads of an inference worker on the CPU; 0: all cores but one.",
    "resident_bytes": "Maximum bytes of the models that an inference worker keeps loaded.",
}

INPUTS = {
    "images": "an image as the body, several as a form or in JSON",
    "latents": "latent codes, as npy or JSON",
    "either": "images or latent codes",
    "nothing": "none but the parameters",
}
OUTPUTS = {
    "images": "images, as PNG, WebP, zip, npy or JSON",
    "latents": "latent codes, as JSON or npy",
    "facts": "JSON",
    "pictured": "JSON with pictures as base64, or a zip",
}
SHOWN = 6
"""Names in the title of a group of settings."""

Rows = Iterable[tuple[str, ...]]


def main() -> str:
    catalog = load()
    bodies = {
        "Commands": table(("command", "what it does"), commands()),
        "Environment variables": table(("variable", "default", "meaning"), settings()),
        "HTTP routes": table(("route", "what it does"), routes()),
        "Built-in datasets": table(
            ("dataset", "what it is", "layout", "size; other sizes", "images", "classes", "licence"), builtins()
        ),
        "Built-in models": table(("model", "what it is", "size", "classes", "licence"), builtin_models()),
        "Families": table(("family", "what it is", "layouts", "operations"), families(catalog["families"])),
        "Settings of the families": shared_settings("family", schemas(catalog["families"], "config")),
        "Attacks": table(("method", "what it is", "norms", "on models that have"), attacks(catalog["attacks"])),
        "Settings of the attacks": shared_settings("attack", schemas(catalog["attacks"])),
        "Defences": table(("stage or detector", "what it does"), stages(catalog)),
        "Settings of the defences": all_settings("defence", schemas(catalog["defences"] | catalog["detectors"])),
        "Reports": table(("report", "what it does", "on models that have"), reports(catalog["reports"])),
        "Settings of the reports": all_settings("report", schemas(catalog["reports"])),
        "Settings of an oracle": all_settings("variable", {"ANAMORPH_ORACLES": Oracle.model_json_schema()}),
        "Operations": operations(catalog["operations"]),
        "Errors": table(("code", "status", "title"), errors()),
    }
    contents = [f"- [{title}](#{anchor(title)})" for title in bodies]
    parts = [line for title, lines in bodies.items() for line in (f"## {title}\n", *lines)]
    return "\n".join([INTRODUCTION, *contents, "", *parts])


def anchor(title: str) -> str:
    """The fragment that GitHub and MkDocs give a heading."""
    return title.lower().replace("`", "").replace(",", "").replace(" ", "-")


def table(heads: tuple[str, ...], rows: Rows) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows), ""]


# ---- rows of the overviews


def commands() -> Rows:
    def walk(name: str, command: Any) -> Iterator[tuple[str, str]]:
        if hasattr(command, "commands"):
            for word, inner in command.commands.items():
                yield from walk(f"{name} {word}", inner)
        else:
            yield f"`{name}{usage(command)}`", command.help or ""

    return walk("anamorph", typer.main.get_command(cli))


def usage(command: Any) -> str:
    words = ""
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            words += f" {parameter.name.upper()}"
        elif not parameter.hidden:
            words += f" [{parameter.opts[0]}]"
    return words


def settings() -> Rows:
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", None) else f"`{field.default}`"
        yield f"`{field.validation_alias or f'ANAMORPH_{name.upper()}'}`", default, SETTINGS[name]


def routes() -> Rows:
    for path, methods in create_app().openapi()["paths"].items():
        for method, operation in methods.items():
            yield f"`{method.upper()} {path}`", operation.get("summary", "")


def builtins() -> Rows:
    for name, about in BUILTINS.items():
        classes = ", ".join(about.classes or ())
        yield f"`{name}`", about.title, about.layout, size(about), str(about.count), classes, about.licence


def builtin_models() -> Rows:
    for name, about in BUILTIN_MODELS.items():
        shape = f"{about.height}x{about.width}x{about.channels}"
        yield f"`{name}`", about.title, shape, str(about.classes), about.licence


def size(about: Builtin) -> str:
    """Height x width x channels, and between which sides `image_size` may choose."""
    usual = f"{about.height}x{about.width}x{about.channels}"
    return f"{usual}; {about.sizes[0]} to {about.sizes[1]}" if about.sizes else usual


def families(entries: dict[str, dict]) -> Rows:
    for name, entry in entries.items():
        operations = ", ".join(f"[{each}](#{each})" for each in entry["operations"])
        yield link("family", name), entry["summary"], ", ".join(entry["layouts"]), operations


def attacks(entries: dict[str, dict]) -> Rows:
    for name, entry in entries.items():
        yield link("attack", name), entry["summary"], ", ".join(entry["norms"]), ", ".join(entry["victims"])


def stages(catalog: dict[str, dict]) -> Rows:
    for kind in ("defences", "detectors"):
        for name, entry in catalog[kind].items():
            yield link("defence", name) + (" (detector)" if kind == "detectors" else ""), entry["summary"]


def reports(entries: dict[str, dict]) -> Rows:
    for name, entry in entries.items():
        summary = f"Deprecated: use `{entry['alias_of']}`." if "alias_of" in entry else entry["summary"]
        yield link("report", name), summary, ", ".join(map(spell_need, entry["needs"]))


def errors() -> Rows:
    return ((f"`{code}`", str(error.status), error.title) for code, error in CODES.items())


def link(kind: str, name: str) -> str:
    return f"[`{name}`](#{anchor(f'{kind} {name}')})"


# ---- settings


def schemas(entries: dict[str, dict], key: str = "params") -> dict[str, dict]:
    return {name: entry[key] for name, entry in entries.items()}


def all_settings(kind: str, entries: dict[str, dict]) -> list[str]:
    """A table of settings for each entry."""
    return [
        line
        for name, schema in entries.items()
        for line in (f"### {kind} `{name}`\n", *settings_table(schema, schema.get("properties", {})))
    ]


def shared_settings(kind: str, entries: dict[str, dict]) -> list[str]:
    """A table for each group of settings that several entries share word for word, and one of the rest for each."""
    owners = defaultdict(list)
    for name, schema in entries.items():
        for field, spec in schema["properties"].items():
            owners[field, json.dumps(spec, sort_keys=True)].append(name)
    groups = defaultdict(list)
    for (field, _), names in owners.items():
        if len(names) > 1:
            groups[tuple(names)].append(field)
    groups = {names: fields for names, fields in groups.items() if len(fields) > 1}
    titles = {names: shared_by(names, len(entries), kind) for names in groups}
    lines = []
    for names, fields in groups.items():
        schema = entries[names[0]]
        lines.append(f"### {titles[names].capitalize()}\n")
        lines += settings_table(schema, {field: schema["properties"][field] for field in fields})
    for name, schema in entries.items():
        lines.append(f"### {kind} `{name}`\n")
        mine = [names for names in groups if name in names]
        lines += [f"- {quoted(groups[names])}: [{titles[names]}](#{anchor(titles[names])})" for names in mine]
        inherited = {field for names in mine for field in groups[names]}
        own = {field: spec for field, spec in schema["properties"].items() if field not in inherited}
        lines += ["", *settings_table(schema, own)] if own else [""]
    return lines


def shared_by(names: tuple[str, ...], total: int, kind: str) -> str:
    kinds = {"family": "families", "attack": "attacks"}[kind]
    if len(names) == total:
        return f"shared by all {kinds}"
    shown = ", ".join(names[:SHOWN])
    return f"shared by {shown}" if len(names) <= SHOWN else f"shared by {len(names)} {kinds} such as {shown}"


def quoted(fields: list[str]) -> str:
    return ", ".join(f"`{field}`" for field in fields)


def settings_table(schema: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    if not fields:
        return ["No settings.\n"]
    rows = [
        (f"`{name}`", describe(without_null(spec), schema), default(spec), spec.get("description", ""))
        for name, spec in fields.items()
    ]
    return table(("setting", "takes", "default", "meaning"), rows)


def without_null(spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of a value that is given; null is the default of such a setting."""
    options = [option for option in spec.get("anyOf", ()) if option.get("type") != "null"]
    return spec | {"anyOf": options} if options else spec


def default(spec: dict[str, Any]) -> str:
    if "default" not in spec:
        return "required"
    return "see meaning" if spec["default"] is None else f"`{json.dumps(spec['default'])}`"


# ---- operations


def operations(entries: dict[str, dict]) -> list[str]:
    lines = []
    for name, entry in entries.items():
        if "alias_of" in entry:
            lines += [f"### {name}\n", f"Deprecated: use [{entry['alias_of']}](#{entry['alias_of']}).\n"]
            continue
        needs = ", ".join(map(spell_need, entry["needs"]))
        lines += [f"### {name}\n", f"{entry['summary']} For models with {needs}.\n"]
        lines += ["```sh", example(name, entry), "```", ""]
        lines += [f"Input: {INPUTS[entry['takes']]}. Answer: {OUTPUTS[entry['gives']]}.\n"]
        if "branches" in entry["params"]:
            lines.append("Parameters depend on the method: see [Settings of the attacks](#settings-of-the-attacks).\n")
        else:
            lines += settings_table(entry["params"], entry["params"].get("properties", {}))
    return lines


def example(name: str, entry: dict[str, Any]) -> str:
    """A curl line; what stands in capitals is the client's."""
    required = entry["params"].get("required", ())
    query = "?" + "&".join(f"{field}={field.upper()}" for field in required) if required else ""
    url = f'"{SERVICE}/v1/models/MODEL/{name}{query}"'
    if entry["takes"] == "nothing":
        return f"curl -f {url} -o OUTPUT"
    if entry["takes"] == "latents":
        return f'curl -f --data-binary @LATENTS.npy -H "Content-Type: application/x-npy" {url} -o OUTPUT'
    return f'curl -f --data-binary @IMAGE.png -H "Content-Type: image/png" {url} -o OUTPUT'


if __name__ == "__main__":
    FILE.write_text(main())
