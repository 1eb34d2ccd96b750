"""/v1/jobs: list, get, cancel, resume; metrics, snapshots and files of a job."""

import csv
import io
import mimetypes
import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, Response

from app.api.calls.responses import choose
from app.api.http.auth import Reader, Watcher, Writer
from app.api.http.openapi import problems
from app.api.http.paths import JobPath, Limit
from app.api.jobs import views as job_views
from app.api.jobs.accept import check_day
from app.core import wire
from app.core.catalog import name_hint
from app.core.catalog.describe import quoted
from app.core.errors import NotFound
from app.core.jobs import checkpoints, events
from app.core.jobs import state as jobs
from app.core.store import blobs, integrity
from app.core.store.database import reading, transaction

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
CSV = {"text/csv": {"schema": {"type": "string"}}}
SNAPSHOT = re.compile(r"(\d{1,15})\.png")
POINTS = 10_000


@router.get("", response_model=wire.Page[wire.Job], operation_id="list_jobs", summary="List jobs, newest first")
def every(
    principal: Reader,
    limit: Limit = 20,
    cursor: Annotated[str | None, Query(max_length=36, description="`next_cursor` of the page before.")] = None,
    status: Annotated[Literal[*jobs.STATES] | None, Query(description="Only in this state.")] = None,
    kind: Annotated[str | None, Query(description="Only of this kind.", pattern="^[a-z]{1,32}$")] = None,
) -> dict[str, Any]:
    with reading() as conn:
        rows, following = jobs.list_jobs(conn, principal.tenant, limit=limit, cursor=cursor, kind=kind, state=status)
        return {"data": job_views.many(conn, rows), "next_cursor": following}


@router.get("/{id}", response_model=wire.Job, operation_id="get_job", summary="Get a job", openapi_extra=problems(404))
def one(id: JobPath, principal: Watcher, response: Response) -> wire.Job:
    with reading() as conn:
        row = jobs.get(conn, principal.tenant, id)
        if row["state"] not in jobs.TERMINAL:
            response.headers["Retry-After"] = str(job_views.RETRY_AFTER)
        return job_views.one(conn, row)


@router.post(
    "/{id}/cancel",
    status_code=202,
    response_model=wire.Job,
    operation_id="cancel_job",
    summary="Cancel a job",
    openapi_extra=problems(404, 409),
)
def cancel(id: JobPath, principal: Writer) -> wire.Job:
    """A queued job ends at once, a running one at its next step. A job may be canceled twice."""
    with transaction() as conn:
        return job_views.one(conn, jobs.cancel(conn, principal.tenant, id))


@router.post(
    "/{id}/resume",
    status_code=202,
    response_model=wire.Job,
    operation_id="resume_job",
    summary="Resume a job",
    openapi_extra=problems(404, 409),
)
def resume(request: Request, id: JobPath, principal: Writer) -> wire.Job:
    """Continues a failed or canceled training, report or perturbation from its last checkpoint."""
    with transaction() as conn:
        check_day(conn, principal.tenant)
        view = job_views.one(conn, jobs.resume(conn, principal.tenant, id))
    request.app.state.sweeper.wake_event.set()
    return view


@router.get(
    "/{id}/metrics",
    response_model=wire.Curves,
    operation_id="get_job_metrics",
    summary="Get the metrics of a job",
    responses={200: {"content": CSV}},
    openapi_extra=problems(404, 406),
)
def metrics(
    request: Request,
    id: JobPath,
    principal: Reader,
    since: Annotated[int, Query(ge=-1, lt=2**53, description="Only points with more images than this.")] = -1,
) -> Response:
    """JSON, or text/csv with a column for each curve."""
    media = choose(request.headers.get("accept"), ["application/json", "text/csv"])
    with reading() as conn:
        jobs.get(conn, principal.tenant, id)
        points = events.metrics(conn, id, since, POINTS)
    if media == "text/csv":
        return Response(_csv(points), media_type="text/csv; charset=utf-8", headers={"Vary": "Accept"})
    curves = wire.Curves(data=points, next_since=points[-1]["images"] if points else since)
    return Response(curves.model_dump_json(), media_type=media, headers={"Vary": "Accept"})


@router.get(
    "/{id}/snapshots",
    response_model=wire.Snapshots,
    operation_id="list_snapshots",
    summary="List the snapshots of a training",
    openapi_extra=problems(404),
)
def snapshots(id: JobPath, principal: Reader) -> wire.Snapshots:
    """Each has the metrics at its point, and whether there is a checkpoint that can be forked."""
    with reading() as conn:
        forkable = checkpoints.points(jobs.get(conn, principal.tenant, id)["checkpoint"])
        points = events.snapshots(conn, id)
    files = (SNAPSHOT.fullmatch(key.rsplit("/", 1)[-1]) for key, _ in blobs.list(f"jobs/{id}/snapshots"))
    pictures = [
        wire.Snapshot(
            images=images,
            url=f"/v1/jobs/{id}/snapshots/{images}.png",
            metrics=points.get(images, {}).get("metrics", {}),
            checkpoint=images in forkable,
        )
        for images in sorted(int(match[1]) for match in files if match)
    ]
    return wire.Snapshots(data=pictures, checkpoints=forkable)


@router.get(
    "/{id}/snapshots/{images}.png",
    operation_id="get_snapshot",
    summary="Get a snapshot of a training",
    response_class=Response,
    responses={200: {"content": PNG}},
    openapi_extra=problems(404),
)
def snapshot(
    id: JobPath,
    images: Annotated[int, Path(ge=0, lt=10**15, description="Images that the training had been shown.")],
    principal: Reader,
) -> Response:
    with reading() as conn:
        jobs.get(conn, principal.tenant, id)
    try:
        picture = integrity.picture(f"jobs/{id}/snapshots/{images}.png", "The snapshot")
    except FileNotFoundError:
        raise NotFound(
            f"The job has no snapshot at {images} images.", remedy=f"GET /v1/jobs/{id}/snapshots lists them."
        ) from None
    return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})


@router.get(
    "/{id}/artifacts/{name}",
    operation_id="get_artifact",
    summary="Download a file of a job",
    response_class=FileResponse,
    responses={
        200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
        206: {"description": "The requested range."},
        416: {"description": "The range is outside the file."},
    },
    openapi_extra=problems(400, 404),
)
def artifact(
    id: JobPath, name: Annotated[str, Path(max_length=200, description="As in the job's result.")], principal: Reader
) -> Response:
    with reading() as conn:
        row = jobs.get(conn, principal.tenant, id)
    keys = job_views.artifacts(row)
    if name not in keys:
        raise NotFound(f"The job has no file {quoted(name)}.", remedy=name_hint(name, keys))
    what = f"The bytes of the file {quoted(name)}"
    sha256 = (row["result"].get("sha256") or {}).get(name)  # results of earlier releases have none
    try:
        path = integrity.sound(integrity.Seal(keys[name], sha256), what) if sha256 else blobs.path(keys[name])
    except FileNotFoundError:
        raise integrity.damaged(f"{what} are missing from the blob store.") from None
    headers = {"Cache-Control": "private, max-age=86400"} | ({"ETag": f'"{sha256}"'} if sha256 else {})
    media = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=media, filename=name, headers=headers)


def _csv(points: list[dict[str, Any]]) -> str:
    names = sorted({name for point in points for name in point["values"]})
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["images", *names])
    table.writerows([point["images"], *(point["values"].get(name, "") for name in names)] for point in points)
    return out.getvalue()
