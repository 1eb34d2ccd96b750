"""Every error as application/problem+json (RFC 9457): what is wrong, where, what is allowed, what to do."""

import math
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from app.core import errors
from app.core.catalog import name_hint
from app.core.catalog.describe import Schema, allowed, between, quoted, resolve, sent
from app.core.errors import AnamorphError, InvalidRequest

log = structlog.get_logger(__name__)

BY_STATUS: dict[int, type[AnamorphError]] = {
    400: errors.InvalidRequest,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    406: errors.NotAcceptable,
    413: errors.TooLarge,
    415: errors.UnsupportedMedia,
    422: errors.InvalidRequest,
}
BOUND_ERRORS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
METHODS = ("GET", "POST", "PUT", "DELETE")


class Problem(JSONResponse):
    media_type = "application/problem+json"


def install(app: FastAPI) -> None:
    """One handler for each way in which an error arrives."""
    app.add_exception_handler(AnamorphError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(DBAPIError, refused)
    app.add_exception_handler(Exception, unforeseen)


def problem(error: AnamorphError, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """The response for an error."""
    body = error.problem() | {"request_id": scope.get("request_id")}
    headers = dict(headers or {})
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="anamorph"'
    return Problem(body, status_code=error.status, headers=headers | {"Cache-Control": "no-store"})


async def ours(request: Request, error: AnamorphError) -> Response:
    if error.status >= 500:
        log.warning("request_failed", code=error.code, detail=error.detail)
    return problem(error, request.scope)


async def invalid(request: Request, error: RequestValidationError) -> Response:
    """Instead of FastAPI's own handler, which repeats the whole input and fails on what JSON cannot hold."""
    return problem(_summary([_fault(request, item) for item in error.errors()]), request.scope)


async def plain(request: Request, error: HTTPException) -> Response:
    """Errors of the framework: unknown path, wrong method, body too large."""
    if isinstance(error.__cause__, ClientDisconnect):  # the framework takes it for an unreadable body
        raise error.__cause__
    kind = BY_STATUS.get(error.status_code, errors.Internal if error.status_code >= 500 else InvalidRequest)
    headers, remedy = dict(error.headers or {}), None
    detail = f"{HTTPStatus(error.status_code).phrase}."
    if kind is errors.MethodNotAllowed:
        headers["Allow"] = _allowed(request)
        detail, remedy = (
            f"This path does not support {request.method}.",
            f"Use {headers['Allow'].replace(', ', ' or ')}.",
        )
    elif kind is errors.NotFound:
        detail, remedy = "Unknown path.", f"{_nearest_path(request)}See /docs for all paths."
    elif kind is errors.TooLarge:
        detail = "The body is larger than the maximum for this path."
    return problem(kind(detail, remedy=remedy), request.scope, headers)


async def refused(request: Request, error: DBAPIError) -> Response:
    """A statement that the database refuses. The request should have been refused earlier, but it is no crash."""
    log.exception("database_refused")
    return problem(errors.Unavailable("The database refused the request.", retry_after=2), request.scope)


async def unforeseen(request: Request, error: Exception) -> Response:
    log.error("request_crashed", exc_info=error)
    detail = "An unexpected error occurred."
    remedy = "Ask the administrator: the log of the service has the details under the request id of this problem."
    return problem(errors.Internal(detail, remedy=remedy), request.scope)


def _allowed(request: Request) -> str:
    """All methods of a path; the framework names those of the first matching route only."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    allowed = [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
    return ", ".join(["GET", "HEAD", *allowed[1:]] if allowed[:1] == ["GET"] else allowed)


def _nearest_path(request: Request) -> str:
    """'Did you mean /v1/models?' for a misspelt path, with the names that the client sent; else nothing."""
    sent_path = request.url.path.rstrip("/")[:200].split("/")
    paths = []
    for path in request.app.openapi()["paths"]:
        parts = path.split("/")
        if len(parts) == len(sent_path):
            pairs = zip(parts, sent_path, strict=True)
            paths.append("/".join(name if part.startswith("{") else part for part, name in pairs))
    close = get_close_matches("/".join(sent_path), paths, n=1, cutoff=0.8)
    return f"Did you mean {close[0]}? " if close else ""


def _fault(request: Request, item: dict[str, Any]) -> dict[str, str]:
    where, *path = item["loc"]
    if item["type"] == "json_invalid":
        return {"pointer": "", "code": "invalid-json", "detail": f"Invalid JSON: {item['ctx']['error']}."}
    parts = [str(part)[:80].encode("ascii", "backslashreplace").decode() for part in path]
    escaped = [part.replace("~", "~0").replace("/", "~1") for part in parts]
    pointer = "".join(f"/{part}" for part in escaped) if where == "body" else "/".join(parts)
    name = parts[-1] if parts else ""
    if item["type"] == "extra_forbidden":
        detail = f"Unknown field {quoted(name)}. {_field_hint(request, path)}"
    elif item["type"] == "missing":
        detail = f"{name} is required." if name else "The request has no body. Send a JSON object."
    elif not path and isinstance(item.get("input"), bytes):
        detail = "The body is not read as JSON. Add the header Content-Type: application/json."
    elif item["type"] == "value_error":
        detail = f"{name}: {item['msg'].removeprefix('Value error, ')}."
    else:
        schema, root = _schema_of(request, where, path)
        bounds = between(schema) if item["type"] in BOUND_ERRORS else None
        value = str(item["input"])[:40] if bounds else sent(item["input"])  # a number in a query is text
        words = bounds or (allowed(schema, root) if path else "a JSON object")
        detail = f"{name or 'The body'} must be {words}; you sent {value}."
    return {"pointer": pointer, "code": item["type"].replace("_", "-"), "detail": detail}


def _field_hint(request: Request, path: list[str | int]) -> str:
    """Where an unknown field of the body belongs, or the nearest fields that the body has."""
    name, fields = str(path[-1]), _body_schema(request).get("properties", {})
    entries = request.app.state.catalog
    for member, kind, key in (("config", "families", "config"), ("params", "reports", "params")):
        is_setting = any(name in entry[key].get("properties", {}) for entry in entries.get(kind, {}).values())
        if len(path) == 1 and member in fields and is_setting:
            return f"Put it into {member}."
    return name_hint(name, fields) or "" if len(path) == 1 else "Remove it."


def _schema_of(request: Request, where: str, path: list[str | int]) -> tuple[Schema, Schema]:
    """The schema of a parameter or of a field of the body in the description of the API, and its definitions."""
    document = request.app.openapi()
    root = {"$defs": document["components"]["schemas"]}
    if where == "body":
        schema = _body_schema(request)
        for part in path[:1]:
            schema = schema.get("properties", {}).get(part, {})
    else:
        schemas = {item["name"].lower(): item["schema"] for item in _operation(request).get("parameters", ())}
        schema = schemas.get(str(path[-1]).lower(), {}) if path else {}
    for part in path[1:] if where == "body" else ():
        options = [resolve(option, root) for option in schema.get("anyOf", [schema])]
        inner = [option["items"] for option in options if isinstance(part, int) and "items" in option]
        inner += [option["properties"][part] for option in options if part in option.get("properties", {})]
        schema = inner[0] if inner else schema
    options = [option for option in schema.get("anyOf", ()) if option.get("type") != "null"]
    return options[0] if len(options) == 1 else schema, root


def _body_schema(request: Request) -> Schema:
    content = _operation(request).get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    return resolve(schema, {"$defs": request.app.openapi()["components"]["schemas"]})


def _operation(request: Request) -> dict[str, Any]:
    """The description of the route that the request reached."""
    return request.app.openapi()["paths"].get(request.scope["route"].path, {}).get(request.method.lower(), {})


def _summary(faults: list[dict[str, str]]) -> InvalidRequest:
    more = f" ({len(faults) - 1} more in errors.)" if len(faults) > 1 else ""
    return InvalidRequest(f"{faults[0]['detail']}{more}", errors=faults)
