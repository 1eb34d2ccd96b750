"""The operations of models, one route for each entry of the catalog: images in; images, latents or facts out."""

import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.calls import etags
from app.api.calls import responses as replies
from app.api.calls.defer import defer
from app.api.calls.openapi import documented
from app.api.calls.prefer import Preferences
from app.api.calls.prepare import Task, check_able, prepare
from app.api.http.auth import Reader
from app.api.http.paths import ModelPath
from app.core.calls.client import Call
from app.core.catalog import Catalog
from app.core.errors import AnamorphError
from app.core.settings import settings
from app.core.store.keys import Principal


def router(entries: Catalog) -> APIRouter:
    """A route for each operation of the catalog."""
    routes = APIRouter(prefix="/v1/models", tags=["operations"])
    for name, entry in entries["operations"].items():
        about = documented(entries, name)
        routes.add_api_route(f"/{{m}}/{name}", _endpoint(name), methods=[entry["method"]], **about)
    return routes


def _endpoint(name: str) -> Callable[..., Awaitable[Response]]:
    async def operate(request: Request, m: ModelPath, principal: Reader) -> Response:
        return await answer(request, name, m, principal)

    return operate


async def answer(request: Request, operation: str, reference: str, principal: Principal) -> Response:
    """One request to one model, from its headers to the response."""
    state, prefer = request.app.state, Preferences.read(request.headers.get("prefer"))
    found = await state.resolver.find(principal.tenant, reference)
    check_able(state.catalog, found, operation)
    task = await prepare(request, operation, found, principal, prefer)
    if prefer.respond_async:
        return await defer(request, task)
    if request.method == "GET":
        return await fetch(request, task, prefer)
    return await compute(request, task, prefer, {"Cache-Control": "no-store"})


async def fetch(request: Request, task: Task, prefer: Preferences) -> Response:
    """GET: one address, the same bytes; a client that has them is told so before anything is computed."""
    form = task.asked.format
    what = task.operation, task.found.digest, sorted(task.params.items())
    etag = etags.tag(*what, form.media, form.grid, settings().executor)
    headers = replies.base_headers(task.asked) | {"ETag": etag, "Cache-Control": _caching(task)}
    if task.picked:
        query = request.url.include_query_params(seed=task.params["seed"]).query
        pinned = f"{task.found.name}@{task.found.digest[:16]}"
        headers["Content-Location"] = f"/v1/models/{pinned}/{task.operation}?{query}"
    elif etags.matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if request.scope.get("head"):
        return Response(media_type=form.media, headers=headers)
    return await compute(request, task, prefer, headers)


async def compute(request: Request, task: Task, prefer: Preferences, headers: dict[str, str]) -> Response:
    """Sends the call to the inference lane and waits."""
    state, form, start = request.app.state, task.asked.format, time.perf_counter()
    state.watch.insist_on_inference()
    call = Call(
        model=task.found.digest,
        operation=task.operation,
        params=task.params,
        images=task.inputs.images,
        latents=task.inputs.latents,
        encoding=form.encoding,
        grid=form.grid,
        deadline=time.time() + min(prefer.wait or 3600, settings().call_timeout_seconds),
        weight=task.weight,
    )
    try:
        found = await state.calls.submit(call)
    except AnamorphError as error:
        state.telemetry.calls.labels(task.operation, error.code).inc()
        raise
    state.telemetry.calls.labels(task.operation, "ok").inc()
    found.timings["total"] = (time.perf_counter() - start) * 1000
    return await replies.respond(found, task.asked, headers | prefer.applied)


def _caching(task: Task) -> str:
    if task.picked:
        return "no-store"
    lasting = task.found.pinned and not task.params.get("dataset")  # a dataset's name may come to mean another
    return "private, max-age=31536000, immutable" if lasting else "private, no-cache"
