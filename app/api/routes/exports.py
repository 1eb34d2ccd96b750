"""/v1/models/{m}/model.onnx: a part of a model as an ONNX graph. A job writes the file once."""

import json
import time
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.responses import FileResponse, Response

from app.api.calls.prepare import Preferences
from app.api.calls.responses import matches
from app.api.http.auth import Reader
from app.api.http.openapi import problems
from app.api.http.paths import ModelPath
from app.core.errors import Conflict, ModelNotReady, NotFound, StorageDamaged, from_problem
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store import blobs, integrity
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction
from app.core.store.models import ResolvedModel
from app.core.store.tables import jobs as job_table

router = APIRouter(prefix="/v1/models", tags=["models"])
FILE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
POLL_SECONDS = 0.2
ACTIVE = ("queued", "running")


@router.get(
    "/{m}/model.onnx",
    operation_id="export_model",
    summary="Download a part of a model as ONNX",
    response_class=FileResponse,
    responses={
        200: {"description": "An ONNX file; axis 0 of inputs and output is the batch.", "content": FILE},
        206: {"description": "The requested range.", "content": FILE},
        304: {"description": "The client has this file."},
        416: {"description": "The range is outside the file."},
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
            description="encoder, decoder, classifier, denoiser, judge, translator_ab ... "
            "Default: the model's first part.",
            pattern="^[a-z_]{1,40}$",
        ),
    ] = None,
) -> Response:
    """Images are float32 in [0, 1], as input and as output; preprocessing is part of the graph. `X-Export-Difference`
    is the largest measured difference from the model, as a fraction of its largest output. The first request for a
    version takes seconds; with `Prefer: wait=N` it answers 409 model-not-ready after N seconds."""
    model = await request.app.state.resolver.find(principal.tenant, m)
    facts = await run_sync(facts_of, model.digest, part)
    if facts is None:
        wait = Preferences.read(request.headers.get("prefer")).wait
        limit = settings().call_timeout_seconds
        seconds = limit if wait is None else min(wait, limit)
        facts = await wait_for_export(request, principal.tenant, model, part, seconds)
    return send(request, model, facts)


def facts_of(digest: str, part: str | None) -> dict[str, Any] | None:
    """The facts that the job wrote beside the file; None before it has run, or when the file is missing or damaged."""
    try:
        facts = json.loads(blobs.get(f"{model_rows.folder(digest)}/{part or 'default'}.onnx.json"))
        key = f"{model_rows.folder(digest)}/{facts['part']}.onnx"
        if "sha256" in facts:
            integrity.sound(integrity.Seal(key, facts["sha256"]), "The ONNX file")
        else:  # a file of an earlier release
            blobs.path(key)
        return facts
    except (FileNotFoundError, ValueError, StorageDamaged):
        return None


async def wait_for_export(
    request: Request, tenant: str, model: ResolvedModel, part: str | None, seconds: float
) -> dict[str, Any]:
    """Starts the job that writes the file and waits for it. Raises the error of the job, or ModelNotReady."""
    job = await run_sync(accept, tenant, model, part)
    request.app.state.sweeper.wake_event.set()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        row = await run_sync(export_state, tenant, job)
        if row["state"] == "succeeded":
            facts = await run_sync(facts_of, model.digest, part)
            if facts is None:
                raise NotFound("The model was deleted while its ONNX file was being written.")
            return facts
        if row["state"] not in ACTIVE:
            raise from_problem(row["error"] or Conflict("The export was cancelled.").problem())
        await anyio.sleep(POLL_SECONDS)
    raise ModelNotReady(
        "The ONNX file of this model is not ready yet.",
        remedy=f"Retry when /v1/jobs/{job} has succeeded.",
        retry_after=2,
        job=f"/v1/jobs/{job}",
    )


def accept(tenant: str, model: ResolvedModel, part: str | None) -> str:
    """The id of the job that writes the file: one that is queued or running, or a new one."""
    spec = {"model": model.digest, "name": model.name} | ({"part": part} if part else {})
    active = (job_table.c.tenant == tenant) & (job_table.c.kind == "export") & job_table.c.state.in_(ACTIVE)
    with transaction() as conn:
        exports = conn.execute(select(job_table.c.id, job_table.c.spec).where(active)).all()
        same = [row.id for row in exports if row.spec == spec]
        return same[0] if same else jobs.accept(conn, tenant=tenant, kind="export", spec=spec)[0]["id"]


def export_state(tenant: str, job: str) -> dict[str, Any]:
    with reading() as conn:
        return jobs.get(conn, tenant, job)


def send(request: Request, model: ResolvedModel, facts: dict[str, Any]) -> Response:
    etag = f'"{model.digest}-{facts["part"]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable" if model.pinned else "private, no-cache",
        "X-Model-Digest": model.digest,
        "X-Export-Part": facts["part"],
        "X-Export-Difference": f"{facts['difference']:.3g}",
    }
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    try:
        path = blobs.path(f"{model_rows.folder(model.digest)}/{facts['part']}.onnx")
    except FileNotFoundError:
        raise NotFound("The ONNX file of this model was deleted.") from None
    name = f"{model.name}-{facts['part']}-{model.digest[:12]}.onnx"
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)
