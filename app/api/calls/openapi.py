"""The OpenAPI description of an operation, from its entry in the catalog."""

from typing import Any

from app.api.calls import responses
from app.api.calls.inputs import IMAGE_TYPES, NPY, ZIP
from app.core import catalog as catalogs
from app.core.catalog import Catalog
from app.core.catalog.describe import Schema, joined, resolve

BINARY = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "contentEncoding": "base64", "maxLength": 28_000_000}
PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAU0lEQVR42gFIALf/AAAgQGCAoMDgAAQkRGSEpMTkAAgoSG"
    "iIqMjoAAwsTGyMrMzsABAwUHCQsNDwABQ0VHSUtNT0ABg4WHiYuNj4ABw8XHycvNz8FUQfgXGwCFQAAAAASUVORK5CYII="
)
LATENTS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "array", "minItems": 1, "items": {"type": "number"}},
    "description": "A list of numbers for each code.",
}
PROBLEMS = (401, 403, 404, 406, 409, 413, 415, 422, 429, 500, 503, 504, 507)


def documented(catalog: Catalog, name: str) -> dict[str, Any]:
    """The arguments of `add_api_route`."""
    entry = catalog["operations"][name]
    extra: dict[str, Any] = {"parameters": [*_headers(entry), *_parameters(catalog, name)], "x-problems": PROBLEMS}
    if entry["method"] == "POST":
        extra["requestBody"] = _body(catalog, name)
    statuses: dict[int | str, dict[str, Any]] = {
        200: {"description": "The answer, in the media type that Accept asks for.", "content": _contents(entry)},
        202: {"description": "With 'Prefer: respond-async': the job that computes the answer."},
    }
    if entry["method"] == "GET":
        statuses[304] = {"description": "The client has this answer: If-None-Match has its entity tag."}
    return {
        "operation_id": f"{name.replace('-', '_')}_model" if name != "samples" else "sample_model",
        "summary": entry["summary"],
        "deprecated": "alias_of" in entry or None,
        "description": _description(entry),
        "responses": statuses,
        "openapi_extra": extra,
    }


def inline(schema: Schema, root: Schema) -> Schema:
    """The schema with its references replaced: they would not resolve inside another document."""
    schema = {key: value for key, value in resolve(schema, root).items() if key not in ("$defs", "title")}
    return {key: _inlined(value, root) for key, value in schema.items()}


def _inlined(value: Any, root: Schema) -> Any:
    if isinstance(value, dict):
        return inline(value, root)
    return [_inlined(item, root) for item in value] if isinstance(value, list) else value


def _description(entry: dict[str, Any]) -> str:
    needs = joined([catalogs.spell_need(need) for need in entry["needs"]])
    forms = joined(responses.offers(entry, several=True), "or")
    one = responses.offers(entry, several=False)[0]
    deprecated = f"Deprecated: use {entry['alias_of']}. " if "alias_of" in entry else ""
    return (
        f"{deprecated}For models with the capability {needs}; others answer 409. Parameters go into the query or, in "
        f"JSON, beside the input. The answer is {forms}, as Accept asks; for a single image {one} by default."
    )


def _headers(entry: dict[str, Any]) -> list[dict[str, Any]]:
    prefer = "`respond-async` makes the call a job, `wait=N` limits it to N seconds."
    headers = {"Prefer": (prefer, "wait=10")}
    headers["Idempotency-Key"] = ("For jobs: repeated requests with the same key make one job.", "4a8f0c1e-6c1f-4b7a")
    if entry["method"] == "GET":
        headers["If-None-Match"] = ("Entity tags of the answers that the client has.", '"3f2a"')
    string = {"type": "string"}
    return [
        {"name": name, "in": "header", "required": False, "description": text, "schema": string, "example": example}
        for name, (text, example) in headers.items()
    ]


def _parameters(catalog: Catalog, name: str) -> list[dict[str, Any]]:
    parameters: dict[str, dict[str, Any]] = {}
    branches = catalogs.branches(catalog, name)
    params = catalog["operations"][name]["params"]
    if branches is None:
        return [
            _parameter(key, inline(spec, params), key in params.get("required", ()))
            for key, spec in params.get("properties", {}).items()
        ]
    discriminator = params["discriminator"]
    choices = {
        "type": "string",
        "enum": sorted(branches),
        "description": "The attack; the other parameters depend on it.",
    }
    parameters[discriminator] = _parameter(discriminator, choices, required="default" not in params)
    for branch, entry in branches.items():
        for key, spec in entry["params"]["properties"].items():
            if key != discriminator:
                text = _loosely(inline(spec, entry["params"]), parameters.get(key))
                parameters.setdefault(key, _parameter(key, text, required=False))["schema"] = text
                parameters[key].setdefault("x-for", []).append(branch)
    return list(parameters.values())


def _loosely(schema: Schema, other: dict[str, Any] | None) -> Schema:
    """The schema of a parameter that several attacks have: the common one, else any of them."""
    if other is None or other["schema"] == schema:
        return schema
    options = other["schema"].get("anyOf", [other["schema"]]) if "x-either" in other["schema"] else [other["schema"]]
    if schema not in options:
        options = [*options, schema]
    return {"anyOf": options, "x-either": True}


def _parameter(name: str, schema: Schema, required: bool) -> dict[str, Any]:
    text = schema.get("description", "")
    return {"name": name, "in": "query", "required": required, "description": text, "schema": schema}


def _body(catalog: Catalog, name: str) -> dict[str, Any]:
    takes = catalog["operations"][name]["takes"]
    content: dict[str, Any] = {}
    if takes in ("images", "either"):
        content |= {media: {"schema": BINARY} for media in (*IMAGE_TYPES, ZIP)}
        fields = {"image": {"type": "array", "items": BINARY, "minItems": 1}}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": fields, "required": ["image"]}}
    content["application/json"] = {"schema": _json_body(catalog, name), "example": _example(takes)}
    if takes in ("latents", "either"):
        content[NPY] = {"schema": BINARY}
    return {"required": takes != "nothing", "content": content}


def _json_body(catalog: Catalog, name: str) -> Schema:
    takes = catalog["operations"][name]["takes"]
    inputs = {
        "image": BASE64 | {"description": "A PNG, JPEG or WebP file."},
        "images": {"type": "array", "minItems": 1, "maxItems": 256, "items": BASE64},
        "latents": LATENTS,
    }
    members = {"images": ("image", "images"), "latents": ("latents",), "either": tuple(inputs), "nothing": ()}[takes]
    one_of = [{"required": [member]} for member in members]
    properties = {member: inputs[member] for member in members}
    properties |= {parameter["name"]: parameter["schema"] for parameter in _parameters(catalog, name)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"oneOf": one_of} if one_of else {})


def _example(takes: str) -> dict[str, Any]:
    return {"latents": [[0.1, -0.3]]} if takes == "latents" else {} if takes == "nothing" else {"image": PICTURE}


def _contents(entry: dict[str, Any]) -> dict[str, Any]:
    forms = [entry, entry | {"gives": "images"}] if entry.get("picture_param") else [entry]
    kinds = dict.fromkeys(kind for form in forms for many in (False, True) for kind in responses.offers(form, many))
    shapes = {responses.JSON: {"type": "object"}}
    return {media: {"schema": shapes.get(media, BINARY)} for media in kinds}
