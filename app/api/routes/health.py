"""Liveness, readiness and metrics of the service."""

import asyncio
import threading
import time

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.api.http.auth import Admin
from app.core import wire
from app.core.errors import AnamorphError
from app.core.jobs import state as jobs
from app.core.jobs import workers as worker_rows
from app.core.store.database import now, reading, transaction

router = APIRouter(tags=["service"])
SECONDS = 5
NEEDED = jobs.QUEUES
WRITE_SECONDS = 2
"""How long a write is waited for, and how long its outcome holds."""
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
    """`degraded` when the broker or a kind of worker is missing or late, or the database cannot be written: jobs are
    accepted but wait, or calls are answered and nothing else.
    """
    watch = request.app.state.watch
    broker, tables, _ = await asyncio.gather(_broker(request), run_sync(_tables), watch.check_workers())
    checks = {"broker": broker, **tables, "workers:infer": watch.state}
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
    rows = {f"workers:{queue}": "ok" if queue in queues else "none" for queue in NEEDED}
    return {"database": "ok", "database_writes": WRITES.outcome(), **rows}


class WriteProbe:
    """Tries a write, at most once in WRITE_SECONDS; who asks meanwhile gets the outcome before."""

    def __init__(self) -> None:
        self.last, self.at, self.lock = "ok", -float(WRITE_SECONDS), threading.Lock()

    def outcome(self) -> str:
        """`ok`, or why the database cannot be written."""
        if self.lock.acquire(blocking=False):
            try:
                if time.monotonic() > self.at + WRITE_SECONDS:
                    self.last = self._write()
                    self.at = time.monotonic()
            finally:
                self.lock.release()
        return self.last

    @staticmethod
    def _write() -> str:
        try:
            with transaction(durable=False, wait_seconds=WRITE_SECONDS) as conn:
                worker_rows.write_probe(conn)
        except AnamorphError as error:
            locked = "lock" in str(error.__cause__)
            return "locked: another process does not end its transaction" if locked else error.detail
        return "ok"


WRITES = WriteProbe()
