"""PUT /v1/models/{m}: a model that was made elsewhere, as a job. Files are stored here and read by a worker."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.api.http.auth import Writer
from app.api.http.openapi import problems
from app.api.http.paths import ModelPath
from app.api.http.strict_json import parse_object
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat, is_replay
from app.api.jobs.uploads import incoming
from app.core import catalog, names, wire
from app.core.catalog.builtin_models import BUILTIN_MODELS
from app.core.errors import AnamorphError, InvalidRequest, TooLarge, UnsupportedMedia
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import new_id
from app.core.wire.imported_card import ImportedCard

router = APIRouter(prefix="/v1/models", tags=["models"])
CARD_BYTES = 8 << 20
PIECE = 1 << 20
BODY = {
    "required": False,
    "description": "The file, and its card as JSON; empty for a built-in model.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "weights.safetensors of a model of such a service; VGG weights as safetensors "
                        "with torchvision's names; or an ONNX file.",
                    },
                    "card": {
                        "type": "string",
                        "description": "JSON: the card of GET /v1/models/{m} for a model of such a service; else "
                        "labels, mean, std (of pixels in [0, 1]), height, width, channels, layout (nchw, nhwc), output "
                        "(logits, softmax), task (classifier, segmenter, estimator), white_box (refuse what gives no "
                        "gradient), licence, attribution; all optional where the file says it.",
                    },
                },
            }
        }
    },
}


@router.put(
    "/{m}",
    status_code=202,
    response_model=wire.Job,
    operation_id="import_model",
    summary="Import a model",
    openapi_extra={"requestBody": BODY, **problems(400, 409, 413, 415, 507)},
)
async def create(
    request: Request,
    m: ModelPath,
    principal: Writer,
    key: IdempotencyKey = None,
    builtin: Annotated[str | None, Query(description="Import this built-in model; no body.", max_length=64)] = None,
) -> Response:
    """Becomes the newest version of that name. An ONNX graph whose operators are known here can be attacked with
    gradients, any other with queries; the job's result says which, and why. Pickles are not read."""
    name = names.checked(m, "m")
    if not await run_sync(is_repeat, principal.tenant, key):
        await run_sync(check_space, principal.tenant)
    if builtin is not None:
        if builtin not in BUILTIN_MODELS:
            remedy = catalog.nearest(builtin, list(BUILTIN_MODELS))
            raise InvalidRequest("There is no such built-in model.", field="builtin", remedy=remedy)
        return await run_sync(accept, request, principal, "model", {"name": name, "builtin": builtin}, key)
    spec, digest = await received(request, name)
    try:
        same_as = spec | {"upload": digest}
        answer = await run_sync(accept, request, principal, "model", spec, key, same_as)
    except AnamorphError:
        await run_sync(blobs.delete_prefix, spec["upload"])
        raise
    if is_replay(answer):
        await run_sync(blobs.delete_prefix, spec["upload"])
    return answer


async def received(request: Request, name: str) -> tuple[dict[str, Any], str]:
    """The spec of the job, its file stored, and the file's SHA-256."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedMedia(
            "A model comes as multipart/form-data with the fields file and card.",
            remedy="curl -X PUT -F file=@model.onnx -F card=@card.json ...",
        )
    async with request.form(max_files=2, max_fields=2, max_part_size=CARD_BYTES) as form:
        file, text = form.get("file"), form.get("card", "{}")
        if unknown := sorted(set(form) - {"file", "card"}):
            raise InvalidRequest("The form has the fields file and card.", field=unknown[0][:80])
        if not isinstance(file, UploadFile):
            raise InvalidRequest("The form has no file.", field="file", remedy="curl -X PUT -F file=@model.onnx ...")
        card = read_card(await text.read(CARD_BYTES + 1) if isinstance(text, UploadFile) else text.encode())
        if (file.size or 0) > settings().max_model_bytes:
            raise TooLarge(f"A model may have {settings().max_model_bytes} bytes.", field="file")
        kind = format_of(await file.read(16))
        await file.seek(0)
        upload = f"uploads/{new_id()}"
        digest = await run_sync(_keep, file, upload)
    return {"name": name, "format": kind, "card": card, "upload": upload}, digest


def read_card(text: bytes) -> dict[str, Any]:
    """The card as it is when it is one of ours, else with every field checked."""
    if len(text) > CARD_BYTES:
        raise TooLarge(f"A card may have {CARD_BYTES} bytes.", field="card")
    card = parse_object(text)
    if "family" in card:
        data = card.get("data")
        sides = [data.get(side) for side in ("height", "width", "channels")] if isinstance(data, dict) else [None]
        if not all(isinstance(side, int) and 1 <= side <= settings().max_side for side in sides):
            raise InvalidRequest("data says the height, width and channels of images.", field="card/data")
        return card
    try:
        return ImportedCard.model_validate(card).model_dump(exclude_none=True)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise InvalidRequest(fault["msg"], field="/".join(("card", *map(str, fault["loc"])))) from None


def format_of(head: bytes) -> str:
    """safetensors or onnx, by the first bytes."""
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x08":
        return "onnx"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise UnsupportedMedia(
            "This is a pickle or a zip of pickles, which can run code; such files are never read.",
            remedy="Save the weights with safetensors.torch.save_file, or export the model as ONNX.",
        )
    raise UnsupportedMedia("This is neither a safetensors nor an ONNX file.", remedy="Send one of these.")


def _keep(file: UploadFile, key: str) -> str:
    """Stores the file; gives its SHA-256."""
    digest = hashlib.sha256()
    with incoming() as kept:
        while piece := file.file.read(PIECE):
            digest.update(piece)
            kept.write(piece)
        kept.flush()
        blobs.put(key, Path(kept.name))
    return digest.hexdigest()
