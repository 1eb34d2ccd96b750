"""Accepting durable jobs: quota, one transaction, then 202 with the location of the job."""

import hashlib
import json
from typing import Annotated, Any

from fastapi import Header, Request
from sqlalchemy import Connection
from starlette.responses import JSONResponse

from app.api.jobs import views as job_views
from app.core.errors import QuotaExceeded
from app.core.jobs import quotas
from app.core.jobs import state as jobs
from app.core.jobs.idempotency import is_known
from app.core.settings import settings
from app.core.store import datasets as dataset_rows
from app.core.store.database import reading, transaction
from app.core.store.keys import Principal

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="A new key for each new request, the same key for its repetitions: the job is made once.",
        min_length=1,
        max_length=255,
        examples=["4a8f0c1e-6c1f-4b7a-9d53-3f1d3c1f6a10"],
    ),
]


def accept(
    request: Request,
    principal: Principal,
    kind: str,
    spec: dict[str, Any],
    key: str | None,
    same_as: Any = None,
    more: dict[str, Any] | None = None,
) -> JSONResponse:
    """Writes the job and answers 202, with the members `more` of the answer. Blocks.

    `same_as`: what repetitions must have in common; default: the spec.
    """
    with transaction() as conn:
        job, replayed = jobs.accept(
            conn,
            tenant=principal.tenant,
            kind=kind,
            spec=spec,
            key=key,
            fingerprint=_fingerprint(request, spec if same_as is None else same_as),
        )
        if not replayed:
            check_day(conn, principal.tenant)
    request.app.state.sweeper.wake_event.set()
    with reading() as conn:
        view = job_views.one(conn, job)
    headers = {"Location": f"/v1/jobs/{job['id']}", "Retry-After": str(job_views.RETRY_AFTER)}
    headers |= {"Idempotency-Replayed": "true"} if replayed else {}
    return JSONResponse(view.model_dump(mode="json") | (more or {}), status_code=202, headers=headers)


def is_repeat(tenant: str, key: str | None) -> bool:
    """Whether the key was used before: then the first answer is repeated, whatever has changed since."""
    with reading() as conn:
        return key is not None and is_known(conn, tenant, key)


def is_replay(answer: JSONResponse) -> bool:
    return "Idempotency-Replayed" in answer.headers


def check_space(tenant: str) -> None:
    """Raises QuotaExceeded when the tenant has stored its maximum of bytes."""
    with reading() as conn:
        stored = dataset_rows.stored_bytes(conn, tenant)
    if stored >= settings().max_bytes_per_tenant:
        raise QuotaExceeded(
            f"Datasets and models take {stored} bytes; the maximum is {settings().max_bytes_per_tenant}.",
            remedy="Delete some of them.",
        )


def check_day(conn: Connection, tenant: str) -> None:
    """Raises QuotaExceeded when the tenant's jobs have run for the seconds that a day allows."""
    limit = settings().max_job_seconds_per_day
    seconds = 0.0 if limit is None else quotas.seconds_of_day(conn, tenant)
    if limit is not None and seconds >= limit:
        raise QuotaExceeded(
            f"The jobs of the tenant have run for {seconds:.0f} s in the last 24 hours; the maximum is {limit:g} s.",
            remedy="Wait, or ask the administrator to raise ANAMORPH_MAX_JOB_SECONDS_PER_DAY.",
            retry_after=3600,
        )


def _fingerprint(request: Request, content: Any) -> str:
    text = json.dumps([request.method, request.url.path, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
