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
There are two kinds of requests. A *call* (denoise, samples, attack ...) answers with the result. A *job* (a training,
an import) answers 202 with its location; follow it with server-sent events at `/v1/jobs/{id}/events`.

Every error is a problem (RFC 9457) with a stable `code`, a `detail` and, where possible, a `remedy`.
"""
TAGS = {
    "operations": "Images in; images, latents or facts out.",
    "models": "Models and their versions.",
    "trainings": "Train models.",
    "jobs": "Jobs: follow, cancel, resume.",
    "datasets": "Datasets: upload, import, derive.",
    "catalog": "Families, attacks and operations with their settings.",
    "perturbations": "Universal perturbations: each fools a model on most images.",
    "keys": "API keys and their limits.",
    "service": "Health and metrics.",
}


def problems(*statuses: int) -> dict[str, Any]:
    """For `openapi_extra`: the statuses of a route's errors besides those of every route."""
    return {MARK: statuses}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
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
        response = responses.get(str(status), {}) if status != 422 else {}  # not FastAPI's own form of 422
        response = response or {"description": HTTPStatus(status).phrase}
        responses[str(status)] = response | {"content": response.get("content", {}) | content}
    operation["responses"] = dict(sorted(responses.items()))
