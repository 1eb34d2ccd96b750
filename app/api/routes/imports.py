"""PUT /v1/models/{m}: the import of a model, as a job. The file is stored here and read by a worker."""

import hashlib
from pathlib import Path
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.api.http.auth import Writer
from app.api.http.middleware import CARD_BYTES
from app.api.http.openapi import problems
from app.api.http.paths import ModelPath
from app.api.http.strict import parse_object
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat, is_replay
from app.api.jobs.uploads import incoming
from app.core import catalog, names, wire
from app.core.catalog.builtins import BUILTIN_MODELS
from app.core.catalog.describe import allowed, quoted, sent
from app.core.errors import AnamorphError, InvalidRequest, TooLarge, UnsupportedMedia
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import new_id

router = APIRouter(prefix="/v1/models", tags=["models"])
PIECE = 1 << 20
BODY = {
    "required": False,
    "description": "The file and its card as JSON; empty for a built-in model.",
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "weights.safetensors of a model of this software; VGG weights in safetensors "
                        "with the names of torchvision; or an ONNX file.",
                    },
                    "card": {
                        "type": "string",
                        "description": "JSON. For a model of this software: its card of GET /v1/models/{m}. Else: "
                        "labels, mean, std (of pixels in [0, 1]), height, width, channels, layout (nchw, nhwc), output "
                        "(logits, softmax), task (classifier, segmenter, estimator), white_box (true: refuse a graph "
                        "without gradients), licence, attribution; optional where the file has it.",
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
    builtin: Annotated[
        str | None, Query(description="Import this built-in model; without a body.", max_length=64)
    ] = None,
) -> Response:
    """Becomes the newest version of the name. An ONNX graph with supported operators can be attacked with gradients,
    any other with queries only; the result of the job says which, and why. Pickles are not read."""
    name = names.checked(m, "m")
    if not await run_sync(is_repeat, principal.tenant, key):
        await run_sync(check_space, principal.tenant)
    if builtin is not None:
        if builtin not in BUILTIN_MODELS:
            remedy = catalog.name_hint(builtin, BUILTIN_MODELS)
            raise InvalidRequest(f"Unknown built-in model {quoted(builtin)}.", field="builtin", remedy=remedy)
        return await run_sync(accept, request, principal, "model", {"name": name, "builtin": builtin}, key)
    spec, digest = await receive(request, name)
    try:
        same_as = spec | {"upload": digest}
        answer = await run_sync(accept, request, principal, "model", spec, key, same_as)
    except AnamorphError:
        await run_sync(blobs.delete_prefix, spec["upload"])
        raise
    if is_replay(answer):
        await run_sync(blobs.delete_prefix, spec["upload"])
    return answer


async def receive(request: Request, name: str) -> tuple[dict[str, Any], str]:
    """Stores the file. Returns the spec of the job and the SHA-256 of the file."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UnsupportedMedia(
            "The body is not multipart/form-data.",
            remedy="Send the form fields file and card: curl -X PUT -F file=@model.onnx -F card=@card.json ...",
        )
    async with request.form(max_files=2, max_fields=2, max_part_size=CARD_BYTES) as form:
        file, text = form.get("file"), form.get("card", "{}")
        if unknown := sorted(set(form) - {"file", "card"}):
            name = unknown[0][:80]
            raise InvalidRequest(
                f"Unknown form field {quoted(name)}.", field=name, remedy="Use the fields file and card."
            )
        if not isinstance(file, UploadFile):
            raise InvalidRequest("The form has no file.", field="file", remedy="Add -F file=@model.onnx.")
        card = read_card(await text.read(CARD_BYTES + 1) if isinstance(text, UploadFile) else text.encode())
        if (file.size or 0) > settings().max_model_bytes:
            limit = settings().max_model_bytes
            raise TooLarge(f"The file has {file.size} bytes; the maximum is {limit}.", field="file")
        kind = format_of(await file.read(16))
        await file.seek(0)
        upload = f"uploads/{new_id()}"
        digest = await run_sync(_store, file, upload)
    return {"name": name, "format": kind, "card": card, "upload": upload}, digest


def read_card(text: bytes) -> dict[str, Any]:
    """The card: unchanged if it is the card of a trained model, else with every field checked."""
    if len(text) > CARD_BYTES:
        raise TooLarge(f"The card has more than {CARD_BYTES} bytes, the maximum.", field="card")
    card = parse_object(text)
    if "family" in card:
        data = card.get("data")
        sides = [data.get(side) for side in ("height", "width", "channels")] if isinstance(data, dict) else [None]
        if not all(isinstance(side, int) and 1 <= side <= settings().max_side for side in sides):
            raise InvalidRequest("data must have the height, width and channels of the images.", field="card/data")
        return card
    try:
        return wire.ImportedCard.model_validate(card).model_dump(exclude_none=True)
    except ValidationError as error:
        raise _invalid_card(error) from None


def _invalid_card(error: ValidationError) -> InvalidRequest:
    fault = error.errors(include_url=False)[0]
    name, *_ = map(str, fault["loc"])
    schema = wire.ImportedCard.model_json_schema()
    if fault["type"] == "extra_forbidden":
        detail = f"Unknown field {quoted(name)}. {catalog.name_hint(name, schema['properties'])}"
    else:
        detail = f"{name} must be {allowed(schema['properties'][name], schema)}; you sent {sent(fault['input'])}."
    return InvalidRequest(detail, field="/".join(("card", *map(str, fault["loc"]))))


def format_of(head: bytes) -> str:
    """safetensors or onnx, recognised by the first bytes. Raises UnsupportedMedia."""
    if head[8:9] == b"{":
        return "safetensors"
    if head[:1] == b"\x08":
        return "onnx"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        raise UnsupportedMedia(
            "The file is a pickle or a zip of pickles, which can run code; such files are not read.",
            remedy="Save the weights with safetensors.torch.save_file, or export the model as ONNX.",
        )
    raise UnsupportedMedia("The file is neither safetensors nor ONNX.", remedy="Send one of these.")


def _store(file: UploadFile, key: str) -> str:
    """Stores the file. Returns its SHA-256."""
    digest = hashlib.sha256()
    with incoming() as copy:
        while piece := file.file.read(PIECE):
            digest.update(piece)
            copy.write(piece)
        copy.flush()
        blobs.put(key, Path(copy.name))
    return digest.hexdigest()
