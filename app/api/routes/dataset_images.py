"""/v1/datasets/{d}/images: pages of images, read by an inference worker, and the thumbnails."""

import base64
import time
from typing import Annotated, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from app.api.calls.references import imported
from app.api.calls.responses import choose
from app.api.http.auth import Reader, submit
from app.api.http.openapi import problems
from app.api.http.paths import DatasetPath
from app.core import wire
from app.core.calls.client import Call
from app.core.errors import NotFound
from app.core.settings import settings
from app.core.store import integrity

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])
PNG = {"image/png": {"schema": {"type": "string", "format": "binary"}}}
MAX_COUNT = 256
"""Maximum images of a dataset in one answer."""


@router.get(
    "/{d}/images",
    response_model=wire.DatasetImages,
    operation_id="list_dataset_images",
    summary="Images of a dataset",
    responses={200: {"content": PNG}},
    openapi_extra=problems(404, 406, 409, 504),
)
async def images(
    request: Request,
    d: DatasetPath,
    principal: Reader,
    split: Annotated[Literal["train", "validation"], Query(description="Side of the split.")] = "train",
    column: Annotated[
        Literal["images", "input", "target", "a", "b", "masks"] | None,
        Query(description="Column of the images. Default: the first."),
    ] = None,
    start: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    count: Annotated[int, Query(ge=1, le=MAX_COUNT)] = 64,
) -> Response:
    """JSON: each image as base64 of a PNG, with its label. image/png: one picture of all."""
    media = choose(request.headers.get("accept"), ["application/json", "image/png"])
    row = await run_sync(imported, principal.tenant, d)
    params = {"dataset": row["digest"], "split": split, "column": column, "start": start, "count": count}
    deadline = time.monotonic() + settings().call_timeout_seconds
    answer = await submit(
        request,
        Call(row["digest"], "dataset_images", params, grid=media == "image/png", deadline=deadline, weight=count),
    )
    if media == "image/png" and answer.images:
        return Response(answer.images[0], media_type=media, headers={"Vary": "Accept"})
    columns = row["facts"]["columns"].get(split, {})
    data = _labelled(answer.images, answer.facts.get("labels"), row["facts"].get("classes"))
    total = columns.get(column or next(iter(columns), ""), 0)
    page = wire.DatasetImages(data=data, split=split, start=start, total=total)
    return Response(page.model_dump_json(), media_type="application/json", headers={"Vary": "Accept"})


@router.get(
    "/{d}/thumbnails.png",
    operation_id="get_dataset_thumbnails",
    summary="Thumbnails of a dataset",
    response_class=Response,
    responses={200: {"content": PNG}},
    openapi_extra=problems(404, 409),
)
def thumbnails(d: DatasetPath, principal: Reader) -> Response:
    """One picture of a few small images, made during the import."""
    row = imported(principal.tenant, d)
    try:
        picture = integrity.picture(f"datasets/{row['digest']}/thumbnails.png", "The picture of thumbnails")
    except FileNotFoundError:
        raise NotFound(f"Dataset {d} has no thumbnails.") from None
    return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _labelled(images: list[bytes], labels: list[int] | None, classes: list[str] | None) -> list[wire.DatasetImage]:
    items = []
    for position, image in enumerate(images):
        index = labels[position] if labels else None
        label = None if index is None else classes[index] if classes else str(index)
        items.append(wire.DatasetImage(image=base64.b64encode(image).decode(), label=label, index=index))
    return items
