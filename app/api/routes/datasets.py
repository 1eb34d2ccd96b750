"""/v1/datasets: upload or import, list, look, delete."""

from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.paths import Cursor, DatasetPath, Limit
from app.api.http.strict_json import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat, is_replay
from app.api.jobs.dataset_views import view
from app.api.jobs.uploads import receive
from app.core import catalog, names, wire
from app.core.catalog.builtin_datasets import BUILTINS
from app.core.errors import AnamorphError, Conflict, InvalidRequest
from app.core.store import blobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import reading, transaction

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StrictRoute)
SIZE = r"^[0-9]{1,4}(x[0-9]{1,4})?$"
ARCHIVE = {"type": "string", "format": "binary"}
BODY = {
    "required": False,
    "description": "A zip, or an npz of arrays; empty for a built-in dataset.",
    "content": {"application/zip": {"schema": ARCHIVE}, "application/x-npz": {"schema": ARCHIVE}},
}


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="create_dataset",
    summary="Import a dataset",
    openapi_extra={"requestBody": BODY, **problems(409, 413, 415, 507)},
)
async def create(
    request: Request,
    principal: Writer,
    key: IdempotencyKey = None,
    name: Annotated[str | None, Query(description="Name of the dataset.", pattern=f"^{names.NAME.pattern}$")] = None,
    builtin: Annotated[str | None, Query(description="Import this built-in set; no body.", max_length=64)] = None,
    layout: Annotated[wire.Layout | None, Query(description="How the archive is to be read; else as it looks.")] = None,
    image_size: Annotated[
        str | None,
        Query(description="Resize to, or draw a built-in set at, a side or height x width: 64, 48x64.", pattern=SIZE),
    ] = None,
    channels: Annotated[Literal["1", "3"] | None, Query(description="1: gray, 3: colour; else as found.")] = None,
) -> Response:
    """The answer is a job; its result has counts, classes, size, and what was refused with the reasons."""
    options: dict[str, Any] = {"layout": layout, "image_size": image_size, "channels": channels and int(channels)}
    options = {option: value for option, value in options.items() if value is not None}
    if builtin is not None:
        return await run_sync(_import_builtin, request, principal, builtin, name, options, key)
    if name is None:
        raise InvalidRequest("name: This is needed.", field="name", remedy="POST /v1/datasets?name=digits")
    await run_sync(check_free, principal.tenant, name, key)
    upload = await receive(request)
    spec = {"name": name, "format": upload.format, "upload": upload.key, **options}
    same_as = {**spec, "upload": upload.sha256}
    try:
        answer = await run_sync(accept, request, principal, "dataset", spec, key, same_as)
    except AnamorphError:
        await run_sync(blobs.delete_prefix, upload.key)
        raise
    if is_replay(answer):
        await run_sync(blobs.delete_prefix, upload.key)
    return answer


def _import_builtin(request: Request, principal, builtin: str, name: str | None, options: dict, key: str | None):
    if builtin not in BUILTINS:
        remedy = catalog.nearest(builtin, list(BUILTINS))
        raise InvalidRequest("There is no such built-in dataset.", field="builtin", remedy=remedy)
    about, name = BUILTINS[builtin], name or builtin
    size = options.pop("image_size", None)
    if size is not None:
        height, _, width = size.partition("x")
        about.check_size(int(height), int(width or height))
    if options or (name != builtin and size is None):
        raise InvalidRequest(
            "A built-in dataset is imported under its own name, as it is; drawn at an image_size, under any name.",
            field=next(iter(options), "name"),
        )
    check_free(principal.tenant, name, key, own=name == builtin)
    spec = {"name": name, "builtin": builtin} | ({} if size is None else {"image_size": size})
    return accept(request, principal, "dataset", spec, key)


def check_free(tenant: str, name: str, key: str | None, own: bool = False) -> None:
    if is_repeat(tenant, key):
        return  # what the first request found counts
    check_space(tenant)
    with reading() as conn:
        taken = dataset_rows.find(conn, tenant, name)
    if taken or (name in BUILTINS and not own):
        what = "There is a dataset of this name." if taken else "This is the name of a built-in dataset."
        raise Conflict(what, field="name", remedy="Choose another name, or delete the old one.")


@router.get(
    "", response_model=wire.Page[wire.Dataset], operation_id="list_datasets", summary="List datasets, built-in ones too"
)
def every(principal: Reader, limit: Limit = 20, cursor: Cursor = None) -> dict[str, Any]:
    if cursor is not None:
        names.checked(cursor, "cursor")
    with reading() as conn:
        page, following = dataset_rows.page(conn, principal.tenant, limit, cursor)
    return {"data": [view(row) for row in page], "next_cursor": following}


@router.get(
    "/{d}",
    response_model=wire.Dataset,
    operation_id="get_dataset",
    summary="Look at a dataset",
    openapi_extra=problems(404, 409),
)
def one(d: DatasetPath, principal: Reader) -> wire.Dataset:
    with reading() as conn:
        return view(dataset_rows.get(conn, principal.tenant, d))


@router.delete(
    "/{d}", status_code=204, operation_id="delete_dataset", summary="Delete a dataset", openapi_extra=problems(404, 409)
)
def remove(d: DatasetPath, principal: Writer) -> None:
    """Jobs that are running on it finish; its name is free at once, the arrays go a day later."""
    with transaction() as conn:
        dataset_rows.remove(conn, principal.tenant, d)
