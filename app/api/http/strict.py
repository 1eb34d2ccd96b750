"""Requests read strictly: JSON without NaN, infinities, lone surrogates or deep nesting; no unknown query parameter."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.core.catalog import name_hint
from app.core.catalog.describe import quoted, sent
from app.core.errors import InvalidRequest

DEPTH = 64


def parse(body: bytes) -> Any:
    """The value of a JSON body. Raises json.JSONDecodeError for everything that is not strict JSON in UTF-8."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise json.JSONDecodeError("it is not UTF-8", "", error.start) from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        _check_depth(value, DEPTH)
    except RecursionError:
        raise json.JSONDecodeError("it is nested too deeply", "", 0) from None
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(f"{error.msg} at character {error.pos}", "", error.pos) from None
    except ValueError as error:  # integers of thousands of digits
        raise json.JSONDecodeError(_words(error), "", 0) from None
    if "\\u" in text and not _encodable(value):
        raise json.JSONDecodeError("it has half of a surrogate pair", "", 0)
    return value


def parse_object(body: bytes) -> dict[str, Any]:
    """The object in a JSON body. Raises InvalidRequest."""
    try:
        value = parse(body)
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"Invalid JSON: {error.msg}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"The body must be a JSON object; you sent {sent(value)}.")
    return value


class StrictRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


class StrictRoute(APIRoute):
    """A route whose JSON body is read by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strictly


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is too large")
    return value


def _words(error: ValueError) -> str:
    text = str(error)
    return "a number is too large" if "digits" in text else text


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RecursionError
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        if isinstance(item, dict | list):
            _check_depth(item, left - 1)


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


async def refuse_unknown_queries(request: Request) -> None:
    """Raises InvalidRequest for a query parameter that the route does not have: it may be a misspelt one."""
    if not request.query_params:
        return
    names = _query_names(request)
    for name in request.query_params:
        if names is not None and name not in names:
            remedy = name_hint(name, names) if names else "This path takes no query parameters."
            raise InvalidRequest(f"Unknown query parameter {quoted(name)}.", field=name[:80], remedy=remedy)


def _query_names(request: Request) -> list[str] | None:
    """The query parameters in the description of the route; None for a route without description."""
    method = "get" if request.method == "HEAD" else request.method.lower()
    described = request.app.openapi()["paths"].get(request.scope["route"].path, {}).get(method)
    return described and [item["name"] for item in described.get("parameters", []) if item["in"] == "query"]
