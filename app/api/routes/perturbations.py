"""/v1/perturbations: universal perturbations, fitted as jobs: create, list, get, download, delete."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.calls.openapi import BINARY
from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.paths import Cursor, Limit, PerturbationPath
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat
from app.api.jobs.requirements import check_size, require_dataset, require_model
from app.core import catalog, names, wire
from app.core.store import integrity
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading, transaction

router = APIRouter(prefix="/v1/perturbations", tags=["perturbations"], route_class=StrictRoute)
MEDIA = {"delta.npy": "application/x-npy", "picture.png": "image/png", "examples.png": "image/png"}
COPIED = tuple(set(wire.Perturbation.model_fields) - {"name", "bytes", "created_at", "links"})


@router.get(
    "",
    response_model=wire.Page[wire.Perturbation],
    operation_id="list_perturbations",
    summary="List universal perturbations",
)
def every(principal: Reader, limit: Limit = 20, cursor: Cursor = None) -> dict[str, Any]:
    if cursor is not None:
        names.checked(cursor, "cursor")
    with reading() as conn:
        page, following = perturbation_rows.page(conn, principal.tenant, limit, cursor)
    return {"data": [view(row) for row in page], "next_cursor": following}


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="create_perturbation",
    summary="Fit a universal perturbation",
    openapi_extra=problems(404, 409, 413),
)
def create(request: Request, body: wire.PerturbationRequest, principal: Writer, key: IdempotencyKey = None) -> Response:
    """One perturbation that fools a classifier on most images, measured on images that it was not fitted to."""
    fields = body.model_dump(exclude_none=True)
    spec = {name: fields.pop(name) for name in ("model", "dataset", "name", "seed") if name in fields}
    spec["config"] = catalog.complete(request.app.state.catalog["perturbations"]["universal"]["params"], fields)
    if not is_repeat(principal.tenant, key):
        check_space(principal.tenant)
        model = require_model(principal.tenant, body.model, ("Classifies",), "A universal perturbation")
        spec["model"] = model.exact
        data = require_dataset(principal.tenant, body.dataset, ("images",), "A universal perturbation")
        check_size(principal.tenant, model, data)
        with reading() as conn:
            perturbation_rows.check_free(conn, principal.tenant, body.name or "")
    return accept(request, principal, "perturbation", spec, key, same_as=body.model_dump())


@router.get(
    "/{p}",
    response_model=wire.Perturbation,
    operation_id="get_perturbation",
    summary="Get a universal perturbation",
    openapi_extra=problems(404),
)
def one(p: PerturbationPath, principal: Reader) -> wire.Perturbation:
    with reading() as conn:
        return view(perturbation_rows.get(conn, principal.tenant, p))


@router.delete(
    "/{p}",
    status_code=204,
    operation_id="delete_perturbation",
    summary="Delete a universal perturbation",
    openapi_extra=problems(404),
)
def remove(p: PerturbationPath, principal: Writer) -> None:
    with transaction() as conn:
        digest = perturbation_rows.remove(conn, principal.tenant, p)
    perturbation_rows.forget_blobs(digest)


def _download(name: str, operation_id: str, summary: str, doc: str) -> None:
    @router.get(
        f"/{{p}}/{name}",
        operation_id=operation_id,
        summary=summary,
        description=doc,
        response_class=Response,
        responses={200: {"content": {MEDIA[name]: {"schema": BINARY}}}},
        openapi_extra=problems(404),
    )
    def download(p: PerturbationPath, principal: Reader) -> Response:
        with reading() as conn:
            row = perturbation_rows.get(conn, principal.tenant, p)
        remedy = "Or delete the perturbation and fit it again."
        if name == "delta.npy":
            seal = integrity.delta(row["digest"], row["facts"])
            data = integrity.sound(seal, f"The numbers of perturbation {p}", remedy).read_bytes()
        else:
            try:
                data = integrity.picture(perturbation_rows.key(row["digest"], name), f"The file {name}", remedy)
            except FileNotFoundError:
                raise integrity.damaged(f"The file {name} is missing from the blob store.", remedy) from None
        return Response(data, media_type=MEDIA[name], headers={"Cache-Control": "private, max-age=3600"})


_download("picture.png", "get_perturbation_picture", "The perturbation, amplified", "Mid-grey means no change.")
_download(
    "examples.png",
    "get_perturbation_examples",
    "Images without and with it",
    "Held-out images in pairs.",
)
_download("delta.npy", "get_perturbation_values", "The perturbation as numbers", "float32 (channels, height, width).")


def view(row: perturbation_rows.Row) -> wire.Perturbation:
    here = f"/v1/perturbations/{row['name']}"
    links = {"self": here, "apply": f"{here}/apply"} | {name: f"{here}/{name}" for name in MEDIA}
    links |= {"model": f"/v1/models/{row['facts']['model']}@{row['model_digest'][:16]}"}
    links |= {"job": f"/v1/jobs/{row['job_id']}"} if row["job_id"] else {}
    facts = {name: row["facts"].get(name) for name in COPIED}
    return wire.Perturbation(**facts, name=row["name"], bytes=row["bytes"], created_at=row["created_at"], links=links)
