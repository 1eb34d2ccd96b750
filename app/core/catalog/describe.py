"""JSON schemas in plain words, for the sentences that tell a client what was given and what is allowed."""

import json
from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]

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
    """The values a schema allows: 'a whole number from 1 to 4096'."""
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
    """Follows `#/$defs/Name`, the only references pydantic writes."""
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


def kind_of(value: Any) -> str:
    """What a client gave, without repeating it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
    return "an object"


def joined(words: Iterable[str], last: str = "and") -> str:
    """'a, b or c'."""
    *head, tail = words
    return f"{', '.join(head)} {last} {tail}" if head else tail


def _range(schema: Schema) -> str:
    if "minimum" in schema and "maximum" in schema:
        return f" from {schema['minimum']} to {schema['maximum']}"
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{word} {schema[key]}" for key, word in words.items() if key in schema]
    return f" {joined(bounds)}" if bounds else ""


def _sizes(schema: Schema, suffix: str, unit: str) -> str:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if low is not None and high is not None:
        return f" of {low} to {high} {unit}" if low != high else f" of {low} {unit}"
    if low is not None:
        return f" of at least {low} {unit}"
    return f" of at most {high} {unit}" if high is not None else ""
