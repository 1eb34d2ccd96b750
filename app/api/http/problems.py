"""Every error as application/problem+json (RFC 9457): what was wrong, where, and what to do. Input is never echoed."""

import math
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from app.core import errors
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
WORDS = {
    errors.NotFound: "Nothing is at this address.",
    errors.MethodNotAllowed: "This address does not take this method.",
    errors.TooLarge: "The body is larger than this address takes.",
}


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
    """The answer that tells of `error`."""
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
    """FastAPI's own handler repeats the input, and fails on input that JSON cannot hold."""
    return problem(_summary([_fault(item) for item in error.errors()]), request.scope)


async def plain(request: Request, error: HTTPException) -> Response:
    """Errors of the framework: no such route, wrong method, body too large."""
    kind = BY_STATUS.get(error.status_code, errors.Internal if error.status_code >= 500 else InvalidRequest)
    words = WORDS.get(kind) or f"{HTTPStatus(error.status_code).phrase}."
    headers = dict(error.headers or {}) | ({"Allow": _allowed(request)} if error.status_code == 405 else {})
    return problem(kind(words), request.scope, headers)


async def refused(request: Request, error: DBAPIError) -> Response:
    """What the database's own tongue cannot say should have been refused before; it is no reason for a 500."""
    log.exception("database_refused")
    return problem(errors.Unavailable("The database did not take the request.", retry_after=2), request.scope)


async def unforeseen(request: Request, error: Exception) -> Response:
    log.error("request_crashed", exc_info=error)
    words = "Something unforeseen went wrong; the service's log has the details under this request id."
    return problem(errors.Internal(words), request.scope)


def _allowed(request: Request) -> str:
    """All methods of an address; the framework names those of the first route alone."""
    scopes = {method: {**request.scope, "method": method} for method in ("GET", "POST", "PUT", "DELETE")}
    found = [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]
    return ", ".join(["GET", "HEAD", *found[1:]] if found[:1] == ["GET"] else found)


def _fault(item: dict[str, Any]) -> dict[str, str]:
    where, *path = item["loc"]
    if item["type"] == "json_invalid":
        return {"pointer": "", "code": "invalid-json", "detail": f"The body is no JSON: {item['ctx']['error']}."}
    parts = [str(part)[:80].encode("ascii", "backslashreplace").decode() for part in path]
    escaped = [part.replace("~", "~0").replace("/", "~1") for part in parts]
    pointer = "".join(f"/{part}" for part in escaped) if where == "body" else "/".join(parts)
    words = {"extra_forbidden": "This field is unknown", "missing": "This is needed"}.get(item["type"], item["msg"])
    return {"pointer": pointer, "code": item["type"].replace("_", "-"), "detail": f"{words}."}


def _summary(faults: list[dict[str, str]]) -> InvalidRequest:
    first = faults[0]
    more = f" ({len(faults) - 1} more in errors.)" if len(faults) > 1 else ""
    name = first["pointer"].rsplit("/", 1)[-1]
    return InvalidRequest(f"{name}: {first['detail']}{more}" if name else first["detail"], errors=faults)
