"""/v1/jobs/{id}/events: the events of a job as server-sent events; a broken stream can be continued."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import format_sse_event
from starlette.responses import Response, StreamingResponse

from app.api.http.auth import Watcher
from app.api.http.openapi import problems
from app.api.http.paths import JobPath
from app.api.jobs import views as job_views
from app.core.jobs import events
from app.core.jobs import state as jobs
from app.core.store.database import encode_json, reading
from app.core.store.tables import ALARMS

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
POLL_SECONDS = 0.4
PING_SECONDS = 15
PING = b": ping\n\n"
LAST = 2**31 - 1
"""The highest number of an event: the maximum of the column."""
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
UNCHANGED = ("metrics", "snapshot", "measured", *ALARMS)


@router.get(
    "/{id}/events",
    operation_id="watch_job",
    summary="Watch a job",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`state`, `progress`, `metrics`, `snapshot`, `alarm`, `log`, `completed`, `measured`.",
            "content": STREAM,
        },
        204: {"description": "The job has ended and the client has all events: do not reconnect."},
    },
    openapi_extra=problems(404),
)
async def watch(
    request: Request,
    id: JobPath,
    principal: Watcher,
    last_event_id: Annotated[str | None, Header(max_length=20, description="Continue after this event.")] = None,
    after: Annotated[int, Query(ge=0, le=LAST, description="The same, for clients that cannot send the header.")] = 0,
) -> Response:
    """The stream begins with past events and ends with `completed`. Progress events have no id: the latest counts.

    The metrics of a training come after its end, in the event `measured`: a client that connects again later, with the
    number of `completed`, gets it. The job that measures has a stream of its own (`links.measurement`).
    """
    if last_event_id and last_event_id.isdecimal():
        after = min(int(last_event_id), LAST)
    job, _ = await run_sync(_look, principal.tenant, id, LAST)
    if job["state"] in jobs.TERMINAL and after >= job["last_event"]:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if request.scope.get("head"):
        return Response(media_type="text/event-stream", headers=headers)
    return StreamingResponse(_stream(principal.tenant, id, after), media_type="text/event-stream", headers=headers)


async def _stream(tenant: str, job_id: str, after: int) -> AsyncIterator[bytes]:
    progress, sent = None, time.monotonic()
    while True:
        job, news = await run_sync(_look, tenant, job_id, after)
        for event in news:
            after = event["seq"]
            kind, data = await run_sync(_translate, event, job)
            yield _framed(kind, data, after)
            if kind == "completed":
                return
        if not news and job["state"] in jobs.TERMINAL and after >= job["last_event"]:
            return  # it reconnected for what came after the end
        if job["progress"] != progress and job["state"] == "running":
            progress = job["progress"]
            yield _framed("progress", progress)
        elif not news and time.monotonic() - sent > PING_SECONDS:
            yield PING
        else:
            await asyncio.sleep(POLL_SECONDS)
            continue
        sent = time.monotonic()


def _look(tenant: str, job_id: str, after: int) -> tuple[job_views.Row, list[dict[str, Any]]]:
    with reading() as conn:
        return jobs.get(conn, tenant, job_id), events.events_after(conn, job_id, after)


def _translate(event: dict[str, Any], job: job_views.Row) -> tuple[str, dict[str, Any]]:
    """(kind, data) in the stream of an event of the table. Only the last end of a resumed job is `completed`."""
    kind, data, when = event["kind"], event["data"], {"at": event["at"], "attempt": event["attempt"]}
    last = kind == "succeeded" or event["seq"] >= job["last_event"]  # after it only `measured` may come
    if kind == job["state"] and kind in jobs.TERMINAL and last:
        with reading() as conn:
            return "completed", job_views.one(conn, job).model_dump(mode="json")
    if kind in jobs.STATES or kind == "cancel_requested":
        return "state", {"status": kind if kind in jobs.STATES else "running", **data, **when, "event": kind}
    if kind == "snapshot":
        data = data | {"url": f"/v1/jobs/{event['job_id']}/snapshots/{data['images']}.png"}
    if kind in UNCHANGED:
        return kind, data | when
    if kind == "checkpoint":
        data = {"images": data.get("images")}  # without the key of its blob
    return "log", {"event": kind, **data, **when}


def _framed(kind: str, data: Any, number: int | None = None) -> bytes:
    return format_sse_event(data_str=encode_json(data), event=kind, id=None if number is None else str(number))
