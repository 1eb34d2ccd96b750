"""Schemas at work: completion, coercion of query texts, and refusals in plain words."""

import pytest

from app.core.catalog import complete, load, name_hint
from app.core.catalog.describe import describe, joined
from app.core.errors import InvalidConfig, InvalidRequest, from_problem
from tests.app.small_catalog import CATALOG, CONFIG

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "share": {"type": "number", "exclusiveMinimum": 0, "default": 0.5},
        "flag": {"type": "boolean", "default": False},
        "label": {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}], "default": None},
        "eps": {"anyOf": [{"type": "number", "minimum": 0}, {"$ref": "#/$defs/Fraction"}]},
        "sizes": {"anyOf": [{"type": "array", "items": {"type": "integer"}, "maxItems": 3}, {"type": "null"}]},
    },
    "$defs": {"Fraction": {"type": "string", "pattern": "^[0-9]+/255$"}},
}
DEFAULTS = {"count": 3, "share": 0.5, "flag": False, "label": None}

COERCED = [
    ("count", "7", 7),
    ("count", "+7", 7),
    ("share", "1e-3", 0.001),
    ("share", "2", 2.0),
    ("flag", "true", True),
    ("flag", "0", False),
    ("label", "3", "3"),
    ("label", "seven", "seven"),
    ("eps", "8/255", "8/255"),
    ("eps", "0.1", 0.1),
    ("sizes", "1,2", [1, 2]),
    ("sizes", ["1", "2"], [1, 2]),
    ("sizes", "null", None),
]


@pytest.mark.parametrize("name, text, value", COERCED)
def test_texts_are_converted_to_the_type_in_the_schema(name, text, value):
    found = complete(SCHEMA, {name: text}, coerce=True)
    assert found == DEFAULTS | {name: value}
    assert type(found[name]) is type(value)


UNREADABLE = [
    ("count", "1.5"),
    ("count", "seven"),
    ("count", "1_0"),
    ("count", "٣"),
    ("count", "9" * 5000),
    ("share", "nan"),
    ("share", "1e999"),
    ("flag", "maybe"),
    ("eps", "8/256"),
    ("sizes", "1,x"),
    ("sizes", "1,2,3,4"),
]


@pytest.mark.parametrize("name, text", UNREADABLE)
def test_texts_that_cannot_be_read_are_refused_by_name(name, text):
    with pytest.raises(InvalidRequest) as error:
        complete(SCHEMA, {name: text}, coerce=True)
    assert [fault["pointer"] for fault in error.value.extra["errors"]] == [name]


def test_without_coercion_a_text_is_not_converted():
    with pytest.raises(InvalidRequest, match='count must be a whole number between 1 and 9; you sent "7"'):
        complete(SCHEMA, {"count": "7"})


def test_a_whole_number_written_as_a_float_is_one():
    assert complete(SCHEMA, {"count": 7.0})["count"] == 7
    with pytest.raises(InvalidRequest):
        complete(SCHEMA, {"count": 7.5})


def test_a_required_setting_that_is_missing_is_named():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    with pytest.raises(InvalidRequest, match="a is required: text"):
        complete(schema, {})


def test_errors_of_a_config_have_pointers_and_cross_processes():
    with pytest.raises(InvalidConfig) as error:
        complete(CONFIG, {"latent_dims": 1, "body": "rnn"}, "/config")
    again = from_problem(error.value.problem())
    assert type(again) is InvalidConfig
    assert [fault["pointer"] for fault in again.problem()["errors"]] == ["/config/latent_dims", "/config/body"]


SENTENCES = [
    ("count", 5000, "count must be between 1 and 9; you sent 5000."),
    ("share", -1, "share must be above 0; you sent -1."),
    ("flag", "maybe", 'flag must be true or false; you sent "maybe".'),
    ("sizes", [1, 2.5], "sizes[1] must be a whole number; you sent 2.5."),
    (
        "sizes",
        [1] * 4,
        "sizes must be a list of at most 3 items, each a whole number; you sent a list of 4 items.",
    ),
    ("count", {"a": 1}, "count must be a whole number between 1 and 9; you sent an object."),
]


@pytest.mark.parametrize("name, value, detail", SENTENCES)
def test_a_refusal_names_the_value_and_what_is_allowed(name, value, detail):
    with pytest.raises(InvalidRequest) as error:
        complete(SCHEMA, {name: value})
    assert error.value.detail == detail


WORDS = [
    ({"type": "integer", "minimum": 1, "maximum": 4}, "a whole number between 1 and 4"),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, "a number above 0 and at most 1"),
    ({"enum": ["a", "b"]}, 'one of "a" or "b"'),
    ({"type": ["integer", "null"]}, "a whole number or null"),
    ({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}, "a list of 2 items, each a number"),
    ({"type": "string", "maxLength": 5}, "text of at most 5 characters"),
    ({"type": "string", "pattern": "^[a-z]$"}, "text of the form ^[a-z]$"),
    ({"type": "string", "pattern": "^[0-9]+/255$", "examples": ["8/255"]}, 'text such as "8/255"'),
    ({}, "a value"),
]


@pytest.mark.parametrize("schema, words", WORDS)
def test_schemas_are_described_in_words(schema, words):
    assert describe(schema) == words


def test_unknown_names_lead_to_the_nearest_known_ones():
    assert name_hint("clasifier", list(CATALOG["families"])) == "Did you mean classifier?"
    assert name_hint("VAE", list(CATALOG["families"])) == "Did you mean vae?"
    assert name_hint("lr", ["learning_rate", "steps"]) == "Did you mean learning_rate?"
    assert name_hint("zzz", ["b", "a"]) == "Choose one of: a, b."
    assert name_hint("zzz", []) is None
    assert joined(["a", "b", "c"], "or") == "a, b or c"


def test_every_schema_of_the_catalog_can_be_described_and_completed():
    catalog = load()
    schemas = [entry["config"] for entry in catalog["families"].values()]
    schemas += [entry["params"] for entry in catalog["attacks"].values()]
    schemas += [entry["params"] for entry in catalog["operations"].values() if "branches" not in entry["params"]]
    for schema in schemas:
        kinds = {name: schema["properties"][name].get("type") for name in schema.get("required", ())}
        needed = {name: 1 if kind == "integer" else "given" for name, kind in kinds.items()}
        assert complete(schema, needed, "/config").keys() == schema.get("properties", {}).keys()
        for spec in schema.get("properties", {}).values():
            assert describe(spec, schema)
