"""A query parameter that the description of a route does not name is refused, not ignored: it may be a misspelt one."""

from fastapi import Request

from app.core.catalog import nearest
from app.core.errors import InvalidRequest


async def known(request: Request) -> None:
    """Raises InvalidRequest naming the first parameter that this route does not know, and the nearest ones it does."""
    if not request.query_params:
        return
    names = _names(request)
    for name in request.query_params:
        if names is not None and name not in names:
            remedy = nearest(name, names) if names else "It takes no query parameters."
            raise InvalidRequest("There is no such query parameter.", field=name[:80], remedy=remedy)


def _names(request: Request) -> list[str] | None:
    """The query parameters in the description of the route; None where it is not described."""
    method = "get" if request.method == "HEAD" else request.method.lower()
    described = request.app.openapi()["paths"].get(request.scope["route"].path, {}).get(method)
    return described and [item["name"] for item in described.get("parameters", []) if item["in"] == "query"]
