"""/v1/me: the key of the request, its limits, and what is used of them."""

from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from app.api.http.auth import Anyone
from app.api.http.rate_limit import WINDOW
from app.core import wire
from app.core.errors import NotFound
from app.core.jobs import quotas
from app.core.settings import settings
from app.core.store import datasets, keys
from app.core.store.database import reading
from app.core.store.keys import Principal

router = APIRouter(prefix="/v1/me", tags=["keys"])


@router.get("", response_model=wire.Me, operation_id="get_me", summary="The key of the request and its limits")
async def me(request: Request, principal: Anyone) -> dict[str, Any]:
    key, of_tenant = await run_sync(_stored, principal)
    scopes = [scope for scope in keys.SCOPES if scope in principal.scopes]
    of_key = await _counted(request)
    return {"key": key, "tenant": principal.tenant, "scopes": scopes, "quotas": of_key | of_tenant}


async def _counted(request: Request) -> dict[str, Any]:
    """Requests and compute of the key; nothing where keys are not required."""
    rates, who = request.app.state.authenticator.rates, request.scope.get("rate_key")
    if rates is None or who is None:
        return {}
    total, window = rates.limit.amount, rates.limit.get_expiry()
    left, resets = await rates.requests_left(who) or (None, None)
    used = None if left is None else total - left
    requests = {"limit": total, "used": used, "window_seconds": window, "resets_in_seconds": resets}
    spent = round(rates.spent(who).seconds, 3)
    compute = {"limit": rates.compute_seconds, "used": spent, "window_seconds": WINDOW}
    return {"requests": requests, "compute_seconds": compute | {"resets_in_seconds": rates.resets()}}


def _stored(principal: Principal) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The row of the key, and what its tenant uses."""
    options, key = settings(), None
    with reading() as conn:
        if principal.key_id:
            try:
                key = keys.get(conn, principal.key_id)
            except NotFound:  # the bootstrap key
                key = None
        used, stored = quotas.used(conn, principal.tenant), datasets.stored_bytes(conn, principal.tenant)
    return key, {
        "jobs": {"limit": options.max_jobs_per_tenant, "used": used.queued + used.running},
        "running_jobs": {"limit": options.max_running_jobs_per_tenant, "used": used.running},
        "job_seconds": {"limit": options.max_job_seconds, "used": used.longest_seconds},
        "job_seconds_per_day": {
            "limit": options.max_job_seconds_per_day,
            "used": used.seconds_of_day,
            "window_seconds": quotas.DAY,
        },
        "stored_bytes": {"limit": options.max_bytes_per_tenant, "used": stored},
    }
