"""What the models can do, as data: families, attacks, operations and the JSON schemas of their settings.

The files `entries/<kind>/<name>.json` are written by `python -m models.catalog`. With them the web front refuses a
wrong setting by name without importing torch.
"""

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from app.core.catalog.coerce import coerce as read_text
from app.core.catalog.describe import BOUNDS, Schema, allowed, between, joined, kinds, quoted, sent
from app.core.errors import AnamorphError, InvalidConfig, InvalidRequest

ENTRIES = Path(__file__).with_name("entries")
SYNONYMS = {
    "alpha": "step",
    "batch": "batch_size",
    "batchsize": "batch_size",
    "bs": "batch_size",
    "carlini": "cw",
    "carlini_wagner": "cw",
    "classes": "labels",
    "count": "n",
    "epsilon": "eps",
    "iterations": "steps",
    "iters": "steps",
    "latent_size": "latent_dim",
    "learningrate": "learning_rate",
    "lr": "learning_rate",
    "max_iter": "steps",
    "num_steps": "steps",
    "strength": "eps",
    "z_dim": "latent_dim",
}
"""The names here of settings and attacks that are often called otherwise."""
KINDS = ("families", "attacks", "operations", "reports", "defences", "detectors", "perturbations")
Fault = dict[str, str]
Catalog = dict[str, dict[str, dict[str, Any]]]


@lru_cache
def load() -> Catalog:
    """The catalog this release was built with."""
    return {
        kind: {
            file.stem: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted(ENTRIES.joinpath(kind).glob("*.json"), key=lambda file: file.stem)
        }
        for kind in KINDS
    }


def name_hint(name: str, known: Iterable[str]) -> str | None:
    """A hint for an unknown name: the names that the client may mean, else all that there are; None without any.

    Case and separators are ignored: `VAE` means vae, `learning-rate` learning_rate.
    """
    choices = sorted(known)
    plain = {_plain(item): item for item in choices}
    sent = _plain(name[:100])
    if (meant := plain.get(sent) or plain.get(_plain(SYNONYMS.get(sent, "")))) is not None:
        return f"Did you mean {meant}?"
    if close := [plain[item] for item in get_close_matches(sent, plain, n=3, cutoff=0.6)]:
        return f"Did you mean {joined(close, 'or')}?"
    return f"Choose one of: {', '.join(choices)}." if choices else None


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_").replace(" ", "_")


def _entry(catalog: Catalog, kind: str, what: str, name: str, error: type[AnamorphError], field: str) -> dict[str, Any]:
    entries = catalog.get(kind, {})
    if name not in entries:
        current = [key for key, entry in entries.items() if "alias_of" not in entry]
        raise error(f"Unknown {what} {quoted(name)}.", field=field, remedy=name_hint(name, current))
    return entries[name]


def family(catalog: Catalog, name: str) -> dict[str, Any]:
    """The entry of a family. Raises InvalidConfig with the nearest names."""
    return _entry(catalog, "families", "family", name, InvalidConfig, "/family")


def report(catalog: Catalog, name: str) -> dict[str, Any]:
    """The entry of a kind of report. Raises InvalidRequest with the nearest names."""
    return _entry(catalog, "reports", "report", name, InvalidRequest, "/report")


def operations_of(catalog: Catalog, capabilities: list[str]) -> list[str]:
    """Names of the operations that a model with these capabilities supports."""
    able = set(capabilities)
    return [name for name, entry in catalog["operations"].items() if all(map(partial(meets, able), entry["needs"]))]


def meets(able: set[str], need: str | list[str]) -> bool:
    """Whether a need is met: a capability, or a list of capabilities of which one is enough."""
    return need in able if isinstance(need, str) else bool(able.intersection(need))


def spell_need(need: str | list[str]) -> str:
    """A need in words: 'Encodes', or 'Encodes or Classifies'."""
    return need if isinstance(need, str) else joined(need, "or")


def branches(catalog: Catalog, operation: str) -> dict[str, dict[str, Any]] | None:
    """The alternatives of an operation whose parameters depend on a discriminator, by its value; None for others."""
    params = catalog["operations"][operation]["params"]
    return catalog[params["branches"]] if "branches" in params else None


def complete(schema: Schema, values: Mapping[str, Any], pointer: str = "", *, coerce: bool = False) -> dict[str, Any]:
    """`values` with the defaults of `schema`. `coerce` reads texts of a query as the types of the schema.

    A default of null stays null: whoever computes derives the value from the data. Raises InvalidConfig for a pointer
    under /config and InvalidRequest otherwise, with an entry in `errors` for each invalid value.
    """
    properties = schema.get("properties", {})
    faults = [_unknown(key, properties, pointer) for key in values if key not in properties]
    read = {key: _read(properties[key], values[key], schema, coerce) for key in values if key in properties}
    if read or schema.get("required"):
        faults += _faults(schema, read, pointer)
    if faults:
        raise _error(faults, pointer)
    return {key: spec["default"] for key, spec in properties.items() if "default" in spec} | read


def _read(spec: Schema, value: Any, root: Schema, coerce: bool) -> Any:
    if coerce:
        value = read_text(spec, value, root)
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
        allowed = kinds(spec, root)
        return int(value) if "integer" in allowed and "number" not in allowed else value
    return value


def _unknown(key: str, known: Iterable[str], pointer: str) -> Fault:
    detail = f"Unknown setting {quoted(key)}. {name_hint(key, known) or 'There are no settings.'}"
    return {"pointer": _join(pointer, key), "code": "unknown", "detail": detail}


def _faults(schema: Schema, values: dict[str, Any], pointer: str) -> list[Fault]:
    open_schema = {key: value for key, value in schema.items() if key != "additionalProperties"}
    faults: dict[str, Fault] = {}
    for error in Draft202012Validator(open_schema).iter_errors(values):
        if error.path:
            name = str(error.path[0])
            faults[name] = {"pointer": _join(pointer, name), "code": "invalid", "detail": _invalid(error, schema)}
        elif error.validator == "required":
            for name in schema["required"]:
                if name not in values:
                    detail = f"{name} is required: {allowed(schema['properties'].get(name, {}), schema)}."
                    faults[name] = {"pointer": _join(pointer, name), "code": "missing", "detail": detail}
        else:
            faults[""] = {"pointer": pointer, "code": "invalid", "detail": "These settings contradict each other."}
    return list(faults.values())


def _invalid(error: ValidationError, root: Schema) -> str:
    """'eps[0] must be a number from 0 to 1; you sent "x".' for the innermost value that is wrong."""
    while inner := [each for each in error.context or () if len(each.absolute_path) > len(error.absolute_path)]:
        error = inner[0]
    first, *rest = error.absolute_path
    where = str(first) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)
    limits = between(error.schema) if error.validator in BOUNDS else None
    return f"{where} must be {limits or allowed(error.schema, root)}; you sent {sent(error.instance)}."


def _error(faults: list[Fault], pointer: str) -> AnamorphError:
    kind = InvalidConfig if pointer.startswith("/config") else InvalidRequest
    more = f" ({len(faults) - 1} more in errors.)" if len(faults) > 1 else ""
    return kind(f"{faults[0]['detail']}{more}", errors=faults)


def _join(pointer: str, name: str) -> str:
    """A JSON pointer below a JSON pointer, else a bare parameter name, in ASCII and of at most 80 characters."""
    safe = name[:80].encode("ascii", "backslashreplace").decode()
    return f"{pointer}/{safe.replace('~', '~0').replace('/', '~1')}" if pointer else safe
