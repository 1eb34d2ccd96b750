"""JSON schemas at work: what a client gave is checked, completed with defaults, or refused field by field."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from jsonschema import Draft202012Validator

from app.core.catalog.coerce import coerce as read_text
from app.core.catalog.describe import Schema, describe, joined, kind_of, kinds
from app.core.errors import AnamorphError, InvalidConfig, InvalidRequest

Fault = dict[str, str]


def complete(schema: Schema, values: Mapping[str, Any], pointer: str = "", *, coerce: bool = False) -> dict[str, Any]:
    """`values` with every default of `schema` filled in. `coerce` reads query texts into the types of the schema.

    A null default stays null: whoever computes derives it from the data. Raises InvalidConfig for a pointer under
    /config and InvalidRequest otherwise, with one entry in `errors` for each field that cannot stay.
    """
    known = schema.get("properties", {})
    faults = [_unknown(key, list(known), pointer) for key in values if key not in known]
    found = {key: _read(known[key], values[key], schema, coerce) for key in values if key in known}
    if found or schema.get("required"):
        faults += _faults(schema, found, pointer)
    if faults:
        raise _error(faults, pointer)
    return {key: spec["default"] for key, spec in known.items() if "default" in spec} | found


def _read(spec: Schema, value: Any, root: Schema, coerce: bool) -> Any:
    if coerce:
        value = read_text(spec, value, root)
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
        allowed = kinds(spec, root)
        return int(value) if "integer" in allowed and "number" not in allowed else value
    return value


def _unknown(key: str, known: list[str], pointer: str) -> Fault:
    close = get_close_matches(key[:100], known, n=1, cutoff=0.5) or sorted(known)
    hint = (
        f"Did you mean {close[0]}?" if len(close) == 1 else f"Known are {joined(close)}." if close else "None is taken."
    )
    return {"pointer": _join(pointer, key), "code": "unknown", "detail": f"This setting is unknown. {hint}"}


def _faults(schema: Schema, values: dict[str, Any], pointer: str) -> list[Fault]:
    open_schema = {key: value for key, value in schema.items() if key != "additionalProperties"}
    faults: dict[str, Fault] = {}
    for error in Draft202012Validator(open_schema).iter_errors(values):
        if error.path:
            names = [str(error.path[0])]
        elif error.validator == "required":
            names = [name for name in schema["required"] if name not in values]
        else:
            names = [""]
        faults.update({name: _fault(schema, name, values, pointer) for name in names})
    return list(faults.values())


def _fault(schema: Schema, name: str, values: dict[str, Any], pointer: str) -> Fault:
    if not name:
        return {"pointer": pointer, "code": "invalid", "detail": "These settings do not go together."}
    allowed = describe(schema["properties"].get(name, {}), schema)
    if name not in values:
        return {"pointer": _join(pointer, name), "code": "missing", "detail": f"This is needed: {allowed}."}
    detail = f"Given was {kind_of(values[name])}; allowed is {allowed}."
    return {"pointer": _join(pointer, name), "code": "invalid", "detail": detail}


def _error(faults: list[Fault], pointer: str) -> AnamorphError:
    kind = InvalidConfig if pointer.startswith("/config") else InvalidRequest
    name = faults[0]["pointer"].rsplit("/", 1)[-1]
    more = f" ({len(faults) - 1} more in errors.)" if len(faults) > 1 else ""
    return kind(f"{name}: {faults[0]['detail']}{more}", errors=faults)


def _join(pointer: str, name: str) -> str:
    """A JSON pointer below a JSON pointer, else a bare parameter name. Long and odd names are cut short."""
    safe = name[:80].encode("ascii", "backslashreplace").decode()
    return f"{pointer}/{safe.replace('~', '~0').replace('/', '~1')}" if pointer else safe
