"""JSON schemas and values in plain words, for the sentences that tell a client what is allowed and what was sent."""

import json
from collections.abc import Iterable
from typing import Any

from app.core.names import NAME, REFERENCE

Schema = dict[str, Any]

NAMES = "1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit"
PATTERNS = {f"^{NAME.pattern}$": NAMES, f"^{REFERENCE.pattern}$": "the name of a model, or name@digest for one version"}
"""Regular expressions in words."""
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}

KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "an object",
}


def describe(schema: Schema, root: Schema | None = None) -> str:
    """The values a schema allows: 'a whole number between 1 and 4096'."""
    root = root or schema
    schema = resolve(schema, root)
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return f"one of {joined([json.dumps(item) for item in schema['enum']], 'or')}"
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return joined(dict.fromkeys(describe(option, root) for option in options), "or")
    match kinds(schema, root):
        case ["integer" | "number" as kind]:
            return KINDS[kind] + _range(schema)
        case ["string"]:
            if schema.get("pattern") in PATTERNS:
                return PATTERNS[schema["pattern"]]
            form = f" of the form {schema['pattern']}" if "pattern" in schema else ""
            form = f" such as {json.dumps(schema['examples'][0])}" if schema.get("examples") else form
            return KINDS["string"] + _sizes(schema, "Length", "characters") + form
        case ["array"]:
            each = f", each {describe(schema['items'], root)}" if schema.get("items") else ""
            return KINDS["array"] + _sizes(schema, "Items", "items") + each
        case []:
            return "a value"
        case several:
            return joined([KINDS[kind] for kind in several], "or")


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema with a reference `#/$defs/Name` resolved; pydantic writes no others."""
    while "$ref" in schema:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]] | beside
    return schema


def kinds(schema: Schema, root: Schema) -> list[str]:
    """The JSON types a schema allows, in its order."""
    schema = resolve(schema, root)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return list(dict.fromkeys(kind for option in options for kind in kinds(option, root)))
    kind = schema.get("type", [])
    return kind if isinstance(kind, list) else [kind]


def sent(value: Any) -> str:
    """A value as an error repeats it: numbers and short texts as they are, lists and objects by their kind."""
    match value:
        case None | bool() | int() | float():
            return json.dumps(value)[:40]
        case str():
            return quoted(value)
        case list() | tuple():
            return f"a list of {len(value)} items" if len(value) != 1 else "a list of 1 item"
    return "an object"


def quoted(text: str) -> str:
    """A text in quotation marks, in ASCII, cut after 60 characters."""
    return json.dumps(text if len(text) <= 60 else f"{text[:57]}...")


def joined(words: Iterable[str], last: str = "and") -> str:
    """'a, b or c'."""
    *head, tail = [*words] or [""]
    return f"{', '.join(head)} {last} {tail}" if head else tail


def allowed(schema: Schema, root: Schema) -> str:
    """The values besides null that a schema allows."""
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    return describe(schema | {"anyOf": options} if options else schema, root)


def between(schema: Schema) -> str | None:
    """The bounds of a number: 'between 1 and 9', 'above 0 and at most 1'; None without any."""
    limits = {key: schema[key] for key in BOUNDS if key in schema}
    limits = {key: int(limit) if limit == int(limit) else limit for key, limit in limits.items()}
    if "minimum" in limits and "maximum" in limits:
        return f"between {limits['minimum']} and {limits['maximum']}"
    return joined([f"{BOUNDS[key]} {limit}" for key, limit in limits.items()]) or None


def _range(schema: Schema) -> str:
    bounds = between(schema) or ""
    return f"{' of' * bounds.startswith('at ')} {bounds}".rstrip()


def _sizes(schema: Schema, suffix: str, unit: str) -> str:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if low is not None and high is not None:
        return f" of {low} to {high} {unit}" if low != high else f" of {low} {unit}"
    if low is not None:
        return f" of at least {low} {unit}"
    return f" of at most {high} {unit}" if high is not None else ""
