"""/v1/models/{m}/model.onnx: a part of a model as a graph that other programs run. A job writes the file once."""

import json
import time
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.responses import FileResponse, Response

from app.api.calls.etags import matches
from app.api.calls.prefer import Preferences
from app.api.http.auth import Reader
from app.api.http.openapi import problems
from app.api.http.paths import ModelPath
from app.core.errors import Conflict, ModelNotReady, NotFound, from_problem
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store import blobs
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction
from app.core.store.models import Found
from app.core.store.tables import jobs as job_table

router = APIRouter(prefix="/v1/models", tags=["models"])
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
LOOK_SECONDS = 0.2
ACTIVE = ("queued", "running")


@router.get(
    "/{m}/model.onnx",
    operation_id="export_model",
    summary="Download a part of a model as ONNX",
    response_class=FileResponse,
    responses={
        200: {"description": "An ONNX file; axis 0 of inputs and output is the batch.", "content": FILE},
        206: {"description": "The range that was asked for.", "content": FILE},
        304: {"description": "The client has it."},
        416: {"description": "No such range."},
    },
    openapi_extra=problems(400, 404, 409),
)
async def export(
    request: Request,
    m: ModelPath,
    principal: Reader,
    part: Annotated[
        str | None,
        Query(
            description="encoder, decoder, classifier, denoiser, judge, translator_ab ...; else the model's first.",
            pattern="^[a-z_]{1,40}$",
        ),
    ] = None,
) -> Response:
    """Images go in and come out as float32 in [0, 1]; preprocessing is inside. `X-Export-Difference` is the largest
    difference from the model that was seen, as a share of its largest answer. The first request of a version takes
    seconds; one that does not want to wait so long is told to come back."""
    found = await request.app.state.resolver.find(principal.tenant, m)
    facts = await run_sync(facts_of, found.digest, part)
    if facts is None:
        wait = Preferences.read(request.headers.get("prefer")).wait
        longest = settings().call_timeout_seconds
        facts = await made(request, principal.tenant, found, part, longest if wait is None else min(wait, longest))
    return send(request, found, facts)


def facts_of(digest: str, part: str | None) -> dict[str, Any] | None:
    """What the job wrote beside the file; None when it has not been made."""
    try:
        return json.loads(blobs.get(f"{model_rows.folder(digest)}/{part or 'default'}.onnx.json"))
    except FileNotFoundError:
        return None


async def made(request: Request, tenant: str, found: Found, part: str | None, seconds: float) -> dict[str, Any]:
    """Has the file made and waits for it. Raises what its job failed with, or ModelNotReady."""
    job = await run_sync(accept, tenant, found, part)
    request.app.state.sweeper.wake()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        row = await run_sync(look, tenant, job)
        if row["state"] == "succeeded":
            facts = await run_sync(facts_of, found.digest, part)
            if facts is None:
                raise NotFound("This model has just been deleted.")
            return facts
        if row["state"] not in ACTIVE:
            raise from_problem(row["error"] or Conflict("The export was cancelled.").problem())
        await anyio.sleep(LOOK_SECONDS)
    raise ModelNotReady(
        "The ONNX file of this model is still being written.",
        remedy=f"Follow /v1/jobs/{job} and ask again.",
        retry_after=2,
        job=f"/v1/jobs/{job}",
    )


def accept(tenant: str, found: Found, part: str | None) -> str:
    """The id of the job that makes the file: the one under way, or a new one."""
    spec = {"model": found.digest, "name": found.name} | ({"part": part} if part else {})
    active = (job_table.c.tenant == tenant) & (job_table.c.kind == "export") & job_table.c.state.in_(ACTIVE)
    with transaction() as conn:
        under_way = conn.execute(select(job_table.c.id, job_table.c.spec).where(active)).all()
        same = [row.id for row in under_way if row.spec == spec]
        return same[0] if same else jobs.accept(conn, tenant=tenant, kind="export", spec=spec)[0]["id"]


def look(tenant: str, job: str) -> dict[str, Any]:
    with reading() as conn:
        return jobs.get(conn, tenant, job)


def send(request: Request, found: Found, facts: dict[str, Any]) -> Response:
    etag = f'"{found.digest}-{facts["part"]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable" if found.pinned else "private, no-cache",
        "X-Model-Digest": found.digest,
        "X-Export-Part": facts["part"],
        "X-Export-Difference": f"{facts['difference']:.3g}",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    try:
        path = blobs.path(f"{model_rows.folder(found.digest)}/{facts['part']}.onnx")
    except FileNotFoundError:
        raise NotFound("The file of this model is gone.") from None
    name = f"{found.name}-{facts['part']}-{found.digest[:12]}.onnx"
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)
