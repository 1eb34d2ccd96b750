"""Liveness, readiness and metrics of the service."""

import asyncio

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.api.http.auth import Admin
from app.core import wire
from app.core.errors import AnamorphError
from app.core.jobs import workers as worker_rows
from app.core.store.database import now, reading

router = APIRouter(tags=["service"])
SECONDS = 5
NEEDED = ("infer", "train", "light")
NUMBERS = {"text/plain": {"schema": {"type": "string"}}}


@router.get("/livez", response_model=wire.Health, operation_id="live", summary="Liveness of the web front")
async def live() -> wire.Health:
    """Checks nothing else: neither the database nor the broker."""
    return wire.Health(status="ok", checks={})


@router.get(
    "/readyz",
    response_model=wire.Health,
    operation_id="ready",
    summary="Readiness of the service",
    responses={503: {"model": wire.Health, "description": "The database does not answer."}},
)
async def ready(request: Request) -> Response:
    """`degraded` when the broker or a kind of worker is missing: jobs are accepted but wait."""
    broker, tables = await asyncio.gather(_broker(request), run_sync(_tables))
    checks = {"broker": broker, **tables}
    status = "ok" if set(checks.values()) == {"ok"} else "degraded"
    if checks["database"] != "ok":
        status = "unavailable"
    health = wire.Health(status=status, checks=checks)
    return JSONResponse(health.model_dump(), status_code=503 if status == "unavailable" else 200)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": NUMBERS}},
)
def metrics(request: Request, principal: Admin) -> Response:
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _broker(request: Request) -> str:
    try:
        async with asyncio.timeout(SECONDS):
            return "ok" if await request.app.state.calls.ping() else "does not answer"
    except TimeoutError:
        return "does not answer"


def _tables() -> dict[str, str]:
    try:
        with reading() as conn:
            now(conn)
            workers = worker_rows.fresh(conn)
    except AnamorphError as error:
        return {"database": error.detail}
    queues = {queue for worker in workers for queue in worker["queues"]}
    return {"database": "ok"} | {f"workers:{queue}": "ok" if queue in queues else "none" for queue in NEEDED}
