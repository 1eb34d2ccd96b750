"""The operations of models, one route for each entry of the catalog: images in; images, latents or facts out."""

import math
import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.calls import responses
from app.api.calls.defer import defer
from app.api.calls.openapi import documented
from app.api.calls.prepare import Preferences, Task, ask, prepare, require_operation, require_time
from app.api.http.auth import Reader
from app.api.http.paths import ModelPath
from app.core.calls.client import Call
from app.core.calls.messages import SLICE_SECONDS
from app.core.catalog import Catalog
from app.core.errors import DeadlineExceeded, Overloaded
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
        return await respond_to(request, name, m, principal)

    return operate


async def respond_to(request: Request, operation: str, reference: str, principal: Principal) -> Response:
    """The response to one request to one model."""
    state, prefer = request.app.state, Preferences.read(request.headers.get("prefer"))
    model = await state.resolver.find(principal.tenant, reference)
    require_operation(state.catalog, model, operation)
    task = await prepare(request, operation, model, principal, prefer)
    if prefer.respond_async and not _is_short(task, prefer):
        return await defer(request, task)
    try:
        if request.method == "GET":
            return await fetch(request, task, prefer)
        return await compute(request, task, prefer, {"Cache-Control": "no-store"})
    except (DeadlineExceeded, Overloaded):
        if not prefer.respond_async:
            raise
        return await defer(request, task)


def _is_short(task: Task, prefer: Preferences) -> bool:
    """Whether a call that may become a job is answered within the seconds that its client waits."""
    return prefer.wait is not None and task.seconds <= prefer.wait and task.weight <= settings().call_images


async def fetch(request: Request, task: Task, prefer: Preferences) -> Response:
    """GET: equal requests give equal bytes, so a client that has them gets 304 before anything is computed."""
    form = task.response.format
    parts = task.operation, task.model.digest, sorted(task.params.items())
    etag = responses.tag(*parts, form.media, form.grid, settings().executor)
    headers = responses.base_headers(task.response) | {"ETag": etag, "Cache-Control": _caching(task)}
    if task.random_seed:
        query = request.url.include_query_params(seed=task.params["seed"]).query
        pinned = f"{task.model.name}@{task.model.digest[:16]}"
        headers["Content-Location"] = f"/v1/models/{pinned}/{task.operation}?{query}"
    elif responses.matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if request.scope.get("head"):
        return Response(media_type=form.media, headers=headers)
    return await compute(request, task, prefer, headers)


async def compute(request: Request, task: Task, prefer: Preferences, headers: dict[str, str]) -> Response:
    """Sends the call to an inference worker and waits for the answer."""
    form, start, options = task.response.format, time.perf_counter(), settings()
    most = options.call_timeout_seconds
    if task.seconds > SLICE_SECONDS:
        most = max(most, options.slow_call_timeout_seconds)
        request.scope.get("leave_admission", int)()  # it has a queue of its own
    most = min(most, math.inf if prefer.wait is None else prefer.wait)
    require_time(task, most)
    call = Call(
        model=task.model.digest,
        operation=task.operation,
        params=task.params,
        images=task.inputs.images,
        latents=task.inputs.latents,
        encoding=form.encoding,
        grid=form.grid,
        deadline=time.monotonic() + most,
        weight=task.weight,
        price=task.seconds,
        decode_pixels=task.inputs.decode_pixels,
    )
    answer = await ask(request, task, call)
    answer.timings["total"] = (time.perf_counter() - start) * 1000
    return await responses.respond(answer, task.response, headers | prefer.applied)


def _caching(task: Task) -> str:
    if task.random_seed:
        return "no-store"
    lasting = task.model.pinned and not task.params.get("dataset")  # the name of a dataset may get other content
    return "private, max-age=31536000, immutable" if lasting else "private, no-cache"
