"""The parameters of an operation: taken from query, form and JSON, read by its schema, completed with defaults."""

from typing import Any

from fastapi import Request

from app.api.calls.inputs import Inputs
from app.core import catalog as catalogs
from app.core.catalog import Catalog
from app.core.catalog.coerce import coerce
from app.core.catalog.complete import complete
from app.core.catalog.describe import Schema
from app.core.errors import InvalidRequest


def given(request: Request, inputs: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """(texts, values): what came as text in the query or a form, and what came as JSON."""
    texts: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        texts[name] = (
            [*([texts[name]] if isinstance(texts[name], str) else texts[name]), value] if name in texts else value
        )
    for name in (inputs.texts.keys() | inputs.params.keys()) & texts.keys():
        raise InvalidRequest("This is given twice, in the query and in the body.", field=name[:80])
    return texts | inputs.texts, inputs.params


def completed(catalog: Catalog, operation: str, texts: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a request, checked. Raises InvalidRequest naming what cannot stay."""
    schema = schema_for(catalog, operation, texts | values)
    known = schema.get("properties", {})
    read = {name: coerce(known[name], text, schema) if name in known else text for name, text in texts.items()}
    return complete(schema, read | values)


def schema_for(catalog: Catalog, operation: str, values: dict[str, Any]) -> Schema:
    """The schema of an operation; where it has branches, that of the branch which `values` choose."""
    params = catalog["operations"][operation]["params"]
    branches = catalogs.branches(catalog, operation)
    if branches is None:
        return params
    name = params["discriminator"]
    choice = values.get(name, params.get("default"))
    if not isinstance(choice, str) or choice not in branches:
        allowed = ", ".join(sorted(branches))
        hint = catalogs.nearest(choice, list(branches)) if isinstance(choice, str) else None
        what = "This is needed" if choice is None else "There is no such choice"
        raise InvalidRequest(f"{name}: {what}; allowed is {allowed}.", field=name, remedy=hint)
    return branches[choice]["params"]
