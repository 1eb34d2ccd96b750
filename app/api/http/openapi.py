"""The description of the API (OpenAPI 3.1), every status with its shape. `make openapi` writes it to a file."""

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.core import wire

EVERYWHERE = (401, 403, 422, 429, 500, 503)
MARK = "x-problems"
SUMMARY = "Trains and serves generative image models, and attacks image models."
DESCRIPTION = """
Two ways in. A *call* (denoise, samples, attack ...) is answered while you wait. A *job* (a training, an import) answers
202 with a place to look; follow it with server-sent events at `/v1/jobs/{id}/events`.

Every error is a problem (RFC 9457) with a stable `code`, a `detail` in plain words and, where there is one, a `remedy`.
"""
TAGS = {
    "operations": "Images in; images, latents or facts out.",
    "models": "Trained models and their versions.",
    "trainings": "Make models.",
    "jobs": "Durable work: watch, cancel, resume.",
    "datasets": "Images to train on.",
    "catalog": "What can be trained, and which attacks there are.",
    "perturbations": "One change that fools a model on most images.",
    "keys": "API keys, for administrators.",
    "service": "Health and numbers.",
}


def problems(*statuses: int) -> dict[str, Any]:
    """For `openapi_extra`: the errors of a route beyond those every route has."""
    return {MARK: statuses}


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole document; kept after the first time."""
    if app.openapi_schema is None:
        document = get_openapi(
            title="Anamorph",
            version=app.version,
            summary=SUMMARY,
            description=DESCRIPTION,
            routes=app.routes,
            tags=[{"name": name, "description": text} for name, text in TAGS.items()],
            license_info={"name": "MIT", "identifier": "MIT"},
        )
        _finish(document)
        app.openapi_schema = document
    return app.openapi_schema


def _finish(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model in (wire.Problem, wire.Fault):
        shape = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas[model.__name__] = {key: value for key, value in shape.items() if key != "$defs"}
    for methods in document["paths"].values():
        for operation in methods.values():
            _add_problems(operation)


def _add_problems(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    for status in sorted({*EVERYWHERE, *operation.pop(MARK, ())}):
        content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
        told = responses.get(str(status), {}) if status != 422 else {}  # FastAPI's own shape of a 422 is not ours
        told = told or {"description": HTTPStatus(status).phrase}
        responses[str(status)] = told | {"content": told.get("content", {}) | content}
    operation["responses"] = dict(sorted(responses.items()))
