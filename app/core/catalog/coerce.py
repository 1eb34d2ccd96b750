"""Query texts as values of the type in a JSON schema: `steps=40` becomes a number, `eps=8/255` stays text."""

import math
from collections.abc import Callable
from typing import Any

from jsonschema import Draft202012Validator

from app.core.catalog.describe import Schema, kinds, resolve

TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def coerce(schema: Schema, value: Any, root: Schema) -> Any:
    """The text itself if the schema allows it, else its value in the first type that the schema allows.

    A text that cannot be converted is returned unchanged, for the schema to refuse. Text comes first, so that "3" means
    a class named "3" before the class with index 3.
    """
    schema = resolve(schema, root)
    if isinstance(value, list):
        return [coerce(_items(schema, root), item, root) for item in value]
    if not isinstance(value, str):
        return value
    if "string" in kinds(schema, root) and _fits(schema, value, root):
        return value
    readings = [reading for kind in kinds(schema, root) for reading in _readings(kind, schema, value, root)]
    return next((reading for reading in readings if _fits(schema, reading, root)), (*readings, value)[0])


def _readings(kind: str, schema: Schema, text: str, root: Schema) -> list[Any]:
    """The value of the text in a type; empty if it has none."""
    try:
        reading = READERS[kind](text)
    except (KeyError, ValueError):
        return []
    return [[coerce(_items(schema, root), item, root) for item in reading]] if kind == "array" else [reading]


def _items(schema: Schema, root: Schema) -> Schema:
    options = [resolve(option, root) for option in schema.get("anyOf", [schema])]
    return next((option["items"] for option in options if "items" in option), {})


def _fits(schema: Schema, value: Any, root: Schema) -> bool:
    return Draft202012Validator({**schema, "$defs": root.get("$defs", {})}).is_valid(value)


def _integer(text: str) -> int:
    if not text.lstrip("+-").isdecimal() or not text.isascii() or len(text) > 30:
        raise ValueError("not a whole number")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or "_" in text:
        raise ValueError("not a finite number")
    return value


def _boolean(text: str) -> bool:
    return TRUTH[text.lower()]


def _null(text: str) -> None:
    if text not in ("", "null"):
        raise ValueError("not null")


def _list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",")]


READERS: dict[str, Callable[[str], Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "null": _null,
    "array": _list,
}
