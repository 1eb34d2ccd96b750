"""POST /v1/perturbations/{p}/apply: adds a universal perturbation to images, through an inference worker."""

import time
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.calls import inputs, responses
from app.api.calls.openapi import BASE64, BINARY, IMAGE_TYPES
from app.api.calls.responses import ResponseSpec
from app.api.http.auth import Reader, submit
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
    summary="Add a universal perturbation to images",
    response_class=Response,
    responses={
        200: {
            "description": "The perturbed images, in the media type that Accept asks for.",
            "content": {media: {"schema": {} if media == responses.JSON else BINARY}
                        for media in responses.offers(APPLY, several=True)},
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
    model: Annotated[
        str | None,
        Query(
            description="Classifier whose predictions for the images before and after are in the answer (JSON only)."
        ),
    ] = None,
) -> Response:
    """Predictions of `model` are for exactly the image bytes of the answer."""
    row = await run_sync(_row, principal.tenant, p)
    victim = await request.app.state.resolver.find(principal.tenant, model) if model else None
    if victim and "Classifies" not in victim.capabilities:
        raise UnsupportedOperation(f"{victim.name} (family {victim.family}) does not support classify.",
                                   field="model")  # fmt: skip
    sent = await inputs.read(request, "images", settings().call_images)
    if sent.params or sent.texts:
        name = next(iter(sent.params | sent.texts))[:80]
        raise InvalidRequest(f"The body takes images only, no {name}.", field=name)
    form = responses.pick(APPLY, request.headers.get("accept"), sent.rows > 1)
    params = {"perturbation": row["digest"], "model": victim.digest if victim else None}
    deadline = time.monotonic() + settings().call_timeout_seconds
    answer = await submit(
        request,
        Call(row["digest"], "apply_perturbation", params, images=sent.images, encoding=form.encoding,
             grid=form.grid, deadline=deadline, weight=sent.rows, decode_pixels=sent.decode_pixels)
    )  # fmt: skip
    answer.facts["perturbation"] = row["name"]
    of = (victim.name, victim.digest) if victim else (row["facts"]["model"], row["model_digest"])
    spec = ResponseSpec("apply", *of, form, sent.several, picture_first=False, seed=None)
    return await responses.respond(answer, spec, {"Cache-Control": "no-store"})


def _row(tenant: str, name: str) -> dict[str, Any]:
    with reading() as conn:
        return perturbation_rows.get(conn, tenant, name)
