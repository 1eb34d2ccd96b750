"""/v1/datasets: upload or import, list, get, delete."""

from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.paths import Cursor, DatasetPath, Limit
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat, is_replay
from app.api.jobs.uploads import receive
from app.core import catalog, names, wire
from app.core.catalog.builtins import BUILTINS, Builtin
from app.core.catalog.describe import quoted
from app.core.errors import AnamorphError, Conflict, InvalidRequest
from app.core.store import blobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import reading, transaction

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=StrictRoute)
SIZE = r"^[0-9]{1,4}(x[0-9]{1,4})?$"
ARCHIVE = {"type": "string", "format": "binary"}
BODY = {
    "required": False,
    "description": "A zip of images, or an npz of arrays; empty for a built-in dataset.",
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
    builtin: Annotated[
        str | None, Query(description="Import this built-in dataset; without a body.", max_length=64)
    ] = None,
    layout: Annotated[
        wire.Layout | None, Query(description="Layout of the archive. Default: recognised from its files.")
    ] = None,
    image_size: Annotated[
        str | None,
        Query(
            description="Size of the images, one side or height x width: 64, 48x64. Default: as in the archive.",
            pattern=SIZE,
        ),
    ] = None,
    channels: Annotated[
        Literal["1", "3"] | None, Query(description="1: grey, 3: colour. Default: as in the archive.")
    ] = None,
    encoding: Annotated[
        names.CodePage | None,
        Query(
            alias="names",
            description="Code page of the names in a zip that are not UTF-8, such as cp932 for Japanese ones. Default: "
            "cp437, with a warning.",
        ),
    ] = None,
) -> Response:
    """The answer is a job; its result has counts, classes, the size, and the refused files with reasons."""
    options: dict[str, Any] = {"layout": layout, "image_size": image_size, "channels": channels and int(channels)}
    options["names"] = encoding
    options = {option: value for option, value in options.items() if value is not None}
    if builtin is not None:
        return await run_sync(_import_builtin, request, principal, builtin, name, options, key)
    if name is None:
        raise InvalidRequest("name is required.", field="name", remedy="POST /v1/datasets?name=digits")
    await run_sync(check_free, principal.tenant, name, key)
    upload = await receive(request)
    spec = {"name": name, "format": upload.format, "upload": upload.key, **options}
    same_as = {**spec, "upload": upload.sha256}
    spec["bytes"] = upload.size
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
        remedy = catalog.name_hint(builtin, BUILTINS)
        raise InvalidRequest(f"Unknown built-in dataset {quoted(builtin)}.", field="builtin", remedy=remedy)
    about, name = BUILTINS[builtin], name or builtin
    size = options.pop("image_size", None)
    if size is not None:
        height, _, width = size.partition("x")
        about.check_size(int(height), int(width or height))
    if options or (name != builtin and size is None):
        raise InvalidRequest(
            "A built-in dataset has its own name, layout and channels; with image_size it may have another name.",
            field=next(iter(options), "name"),
        )
    check_free(principal.tenant, name, key, own=name == builtin)
    spec = {"name": name, "builtin": builtin} | ({} if size is None else {"image_size": size})
    return accept(request, principal, "dataset", spec, key)


def check_free(tenant: str, name: str, key: str | None, own: bool = False) -> None:
    """Raises Conflict for a name that is taken, QuotaExceeded without space. `own`: a built-in set under its name."""
    if is_repeat(tenant, key):
        return  # the answer to the first request is repeated
    check_space(tenant)
    with reading() as conn:
        exists = dataset_rows.find(conn, tenant, name)
    if exists or (name in BUILTINS and not own):
        detail = f"A dataset named {name} exists already." if exists else f"{name} is the name of a built-in dataset."
        remedy = "Choose another name, or delete it." if exists else "Choose another name."
        raise Conflict(detail, field="name", remedy=remedy)


@router.get(
    "",
    response_model=wire.Page[wire.Dataset],
    operation_id="list_datasets",
    summary="List datasets, with the built-in ones",
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
    summary="Get a dataset",
    openapi_extra=problems(404, 409),
)
def one(d: DatasetPath, principal: Reader) -> wire.Dataset:
    with reading() as conn:
        return view(dataset_rows.get(conn, principal.tenant, d))


@router.delete(
    "/{d}", status_code=204, operation_id="delete_dataset", summary="Delete a dataset", openapi_extra=problems(404, 409)
)
def remove(d: DatasetPath, principal: Writer) -> None:
    """Running jobs on it finish; its name is free at once, its arrays are deleted a day later."""
    with transaction() as conn:
        dataset_rows.remove(conn, principal.tenant, d)


def view(row: dataset_rows.Row | Builtin) -> wire.Dataset:
    """A dataset as clients see it."""
    if isinstance(row, Builtin):
        return wire.Dataset(
            name=row.id,
            title=row.title,
            **{name: getattr(row, name) for name in ("layout", "height", "width", "channels", "count")},
            classes=list(row.classes) if row.classes else None,
            builtin=True,
            installed=row.installed,
            sizes=list(row.sizes) if row.sizes else None,
            twins=row.twins,
            imported=False,
            licence=row.licence,
            attribution=row.attribution,
            links={"self": f"/v1/datasets/{row.id}", "import": f"/v1/datasets?builtin={row.id}"},
        )
    facts, here = row["facts"], f"/v1/datasets/{row['name']}"
    builtin = BUILTINS.get(row["source"].removeprefix("builtin:")) if row["source"].startswith("builtin:") else None
    return wire.Dataset(
        name=row["name"],
        title=builtin and builtin.title,
        layout=row["layout"],
        **{name: facts[name] for name in ("height", "width", "channels", "columns")},
        count=sum(max(side.values(), default=0) for side in facts["columns"].values()),
        classes=facts.get("classes"),
        **{name: row[name] for name in ("digest", "licence", "attribution", "bytes", "created_at")},
        builtin=builtin is not None,
        installed=True,
        sizes=list(builtin.sizes) if builtin and builtin.sizes else None,
        twins=facts.get("twins", False),
        imported=True,
        links={"self": here, "images": f"{here}/images", "thumbnails": f"{here}/thumbnails.png"},
    )
