"""Calls as jobs (`Prefer: respond-async`): the inputs become a blob, the answer will be a file of the job."""

import hashlib

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.responses import Response

from app.api.calls.prepare import Task
from app.api.jobs.accept import accept, is_replay
from app.core.calls.messages import pack_inputs
from app.core.catalog import cost
from app.core.errors import Forbidden
from app.core.store import blobs
from app.core.store.database import new_id


async def defer(request: Request, task: Task) -> Response:
    """Status 202 with the job."""
    if "write" not in task.principal.scopes:
        raise Forbidden("The API key lacks the scope write.", remedy="Use a key that has it.", scope="write")
    return await run_sync(_accept, request, task)


def _accept(request: Request, task: Task) -> Response:
    cost.check(task.price)
    inputs, upload = pack_inputs(task.inputs.images, task.inputs.latents, task.inputs.names), None
    if task.inputs.rows:
        upload = f"uploads/{new_id()}"
        blobs.put(upload, inputs)
    form = task.response.format
    spec = {
        "model": task.model.digest,
        "name": task.model.name,
        "operation": task.operation,
        "params": task.params,
        "encoding": form.encoding,
        "grid": form.grid,
        "media_type": form.media,
        "upload": upload,
        "price": round(task.seconds, 3),
    }
    same_as = [task.model.digest, task.sent_params, form.media, hashlib.sha256(inputs).hexdigest()]
    answer = accept(request, task.principal, "operation", spec, request.headers.get("idempotency-key"), same_as)
    if upload and is_replay(answer):
        blobs.delete_prefix(upload)
    answer.headers["Preference-Applied"] = "respond-async"
    return answer
