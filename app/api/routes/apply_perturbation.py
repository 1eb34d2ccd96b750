"""POST /v1/perturbations/{p}/apply: a universal perturbation put on images, through an inference worker."""

import time
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.calls import formats
from app.api.calls import inputs as intake
from app.api.calls import responses as replies
from app.api.calls.openapi import BASE64, BINARY, IMAGE_TYPES
from app.api.calls.responses import Asked
from app.api.http.auth import Reader
from app.api.http.paths import PerturbationPath
from app.core.calls.client import Call
from app.core.errors import InvalidRequest, UnsupportedOperation
from app.core.settings import settings
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading

router = APIRouter(prefix="/v1/perturbations", tags=["perturbations"])
APPLY = {"gives": "images", "params": {}, "sheet": False, "json_first": False}


@router.post(
    "/{p}/apply",
    operation_id="apply_perturbation",
    summary="Put a universal perturbation on images",
    response_class=Response,
    responses={
        200: {
            "description": "The perturbed images, in the form that Accept asks for.",
            "content": {media: {"schema": {} if media == formats.JSON else BINARY}
                        for media in formats.offers(APPLY, several=True)},
        }
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {media: {"schema": BINARY} for media in IMAGE_TYPES}
            | {"application/json": {"schema": {
                "type": "object",
                "properties": {"image": BASE64, "images": {"type": "array", "minItems": 1, "items": BASE64}},
            }}},
        },
        "x-problems": (401, 403, 404, 406, 409, 413, 415, 422, 429, 500, 503, 504, 507),
    },
)  # fmt: skip
async def apply(
    request: Request,
    p: PerturbationPath,
    principal: Reader,
    model: Annotated[str | None, Query(description="A classifier to ask about the images before and after.")] = None,
) -> Response:
    """Predictions of `model` come in JSON; they are those for the very bytes that are sent back."""
    row = await run_sync(_found, principal.tenant, p)
    victim = await request.app.state.resolver.find(principal.tenant, model) if model else None
    if victim and "Classifies" not in victim.capabilities:
        raise UnsupportedOperation(f"{victim.name} is a model of family {victim.family} and does not classify.",
                                   field="model")  # fmt: skip
    inputs = await intake.read(request, "images", settings().call_images)
    if inputs.params or inputs.texts:
        raise InvalidRequest("Only images go into the body here.", field=next(iter(inputs.params | inputs.texts))[:80])
    form = formats.pick(APPLY, request.headers.get("accept"), inputs.rows > 1)
    request.app.state.watch.insist_on_inference()
    params = {"perturbation": row["digest"], "model": victim.digest if victim else None}
    deadline = time.time() + settings().call_timeout_seconds
    found = await request.app.state.calls.submit(
        Call(row["digest"], "apply_perturbation", params, images=inputs.images, encoding=form.encoding,
             grid=form.grid, deadline=deadline, weight=inputs.rows)
    )  # fmt: skip
    found.facts["perturbation"] = row["name"]
    of = (victim.name, victim.digest) if victim else (row["facts"]["model"], row["model_digest"])
    asked = Asked("apply", *of, form, inputs.several, picture_first=False, seed=None)
    return await replies.respond(found, asked, {"Cache-Control": "no-store"})


def _found(tenant: str, name: str) -> dict[str, Any]:
    with reading() as conn:
        return perturbation_rows.get(conn, tenant, name)
