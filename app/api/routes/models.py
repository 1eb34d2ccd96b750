"""/v1/models: list, get, download weights, delete. The operations of models are in operations.py."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse, Response

from app.api.calls.responses import matches
from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.paths import Cursor, Limit, ModelPath
from app.core import catalog, names, wire
from app.core.catalog import Catalog
from app.core.errors import ModelNotReady
from app.core.jobs import measurements
from app.core.jobs.queries import statuses
from app.core.store import integrity, quizzes
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction

router = APIRouter(prefix="/v1/models", tags=["models"])
WEIGHTS = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("", response_model=wire.Page[wire.Model], operation_id="list_models", summary="List models")
def every(
    request: Request,
    principal: Reader,
    limit: Limit = 20,
    cursor: Cursor = None,
    family: Annotated[str | None, Query(description="Only of this family.", pattern="^[a-z0-9_]{1,64}$")] = None,
) -> dict[str, Any]:
    if cursor is not None:
        names.checked(cursor, "cursor")
    with reading() as conn:
        page, following = model_rows.page(conn, principal.tenant, limit, cursor, family)
        measuring = statuses(conn, measurements.pending(row["measurement"] for row in page))
    entries = request.app.state.catalog
    found = [summary(entries, row, row["name"], measuring) | state(row, read=False) for row in page]
    return {"data": [wire.Model(**item) for item in found], "next_cursor": following}


@router.get(
    "/{m}",
    response_model=wire.ModelDetail,
    operation_id="get_model",
    summary="Get a model",
    openapi_extra=problems(404),
)
def one(request: Request, m: ModelPath, principal: Reader) -> wire.ModelDetail:
    """A model that is still being trained has `ready: false` and a link to its job; so has one whose weights are
    missing or damaged, without the link. `reason` says which."""
    with reading() as conn:
        try:
            row = model_rows.get(conn, principal.tenant, m)
        except ModelNotReady as error:
            links = {"self": f"/v1/models/{m}", "job": error.extra["job"]}
            return wire.ModelDetail(name=m, ready=False, reason=error.detail, links=links)
        versions = model_rows.versions(conn, principal.tenant, row["name"])
        measuring = statuses(conn, measurements.pending([row["measurement"]]))
    listed = [wire.Version(**version | {"job": _job(version["job_id"])}) for version in versions]
    found = summary(request.app.state.catalog, row, m, measuring) | state(row)
    return wire.ModelDetail(**found, card=_measured_card(row), versions=listed)


@router.delete(
    "/{m}", status_code=204, operation_id="delete_model", summary="Delete a model", openapi_extra=problems(404, 409)
)
def remove(request: Request, m: ModelPath, principal: Writer) -> None:
    """A name deletes all versions, name@digest one version; the name then means the newest that is left."""
    with transaction() as conn:
        measurements.cancel(conn, principal.tenant, m)
        digests = model_rows.remove(conn, principal.tenant, m)
    request.app.state.resolver.forget()
    model_rows.forget_blobs(digests)


@router.get(
    "/{m}/weights.safetensors",
    operation_id="download_weights",
    summary="Download a model's weights",
    response_class=FileResponse,
    responses={
        200: {"description": "A safetensors file.", "content": WEIGHTS},
        206: {"description": "The requested range.", "content": WEIGHTS},
        304: {"description": "The client has this file."},
        416: {"description": "The range is outside the file."},
    },
    openapi_extra=problems(400, 404, 409),
)
def weights(request: Request, m: ModelPath, principal: Reader) -> Response:
    with reading() as conn:
        model = model_rows.resolve(conn, principal.tenant, m)
        card = model_rows.get(conn, principal.tenant, model.exact)["card"]
    etag = f'"{model.digest}"'
    caching = "private, max-age=31536000, immutable" if model.pinned else "private, no-cache"
    headers = {"ETag": etag, "Cache-Control": caching, "X-Model-Digest": model.digest}
    if matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    path = integrity.sound(integrity.weights(model.digest, card), f"The weights of model {model.name}")
    name = f"{model.name}-{model.digest[:12]}.safetensors"
    return FileResponse(path, media_type="application/octet-stream", filename=name, headers=headers)


def summary(entries: Catalog, row: model_rows.Row, reference: str, measuring: dict[str, str]) -> dict[str, Any]:
    """A row as clients see it; links have the reference that the client used. `measuring`: see `measurements.view`."""
    here, digest = f"/v1/models/{reference}", row["digest"]
    operations = catalog.operations_of(entries, row["capabilities"])
    links = {
        "self": here,
        "version": f"/v1/models/{row['name']}@{digest[:16]}",
        "weights": f"{here}/weights.safetensors",
        "onnx": f"{here}/model.onnx",
    }
    links |= {"job": _job(row["job_id"])} if row["job_id"] else {}
    links |= {"quiz": f"{here}/quiz"} if quizzes.possible(operations, row["card"]) else {}
    copied = ("name", "digest", "family", "dataset", "seed", "config", "metrics", "capabilities", "created_at", "bytes")
    paths = {operation: f"{here}/{operation}" for operation in operations}
    measurement = measurements.view(row["measurement"], measuring)
    return {name: row[name] for name in copied} | {"operations": paths, "measurement": measurement, "links": links}


def _measured_card(row: model_rows.Row) -> dict[str, Any]:
    """The card, with the metrics and warnings that came after it; its digest covers it without them."""
    if not row["measurement"] or row["measurement"]["status"] != "measured":
        return row["card"]
    return row["card"] | {"metrics": row["metrics"], "warnings": row["measurement"]["warnings"]}


def state(row: model_rows.Row, read: bool = True) -> dict[str, Any]:
    """Whether the weights of a version can be used, and why not."""
    reason = model_rows.fault(row, read)
    return {"ready": reason is None, "reason": reason}


def _job(job_id: str | None) -> str | None:
    return f"/v1/jobs/{job_id}" if job_id else None
