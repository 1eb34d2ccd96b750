"""/v1/oracles: models elsewhere that the administrator allows to be attacked, and jobs that do."""

import base64
import binascii
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.calls.inputs import IMAGE_TYPES, MAGIC
from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.paths import OraclePath
from app.api.http.strict_json import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, is_repeat, is_replay
from app.core import catalog, wire
from app.core.calls.messages import pack_inputs
from app.core.catalog import Catalog
from app.core.errors import InvalidImage, InvalidRequest, NotFound, TooLarge
from app.core.oracles import Oracle
from app.core.settings import settings
from app.core.store import blobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import new_id, reading

router = APIRouter(prefix="/v1/oracles", tags=["oracles"], route_class=StrictRoute)
SEES = {"scores": ("scores", "labels"), "labels": ("labels",)}
"""What an attack may need of an oracle that answers so."""
VICTIM = "Classifies"


@router.get("", operation_id="list_oracles", summary="Models elsewhere that may be attacked")
def every(request: Request, principal: Reader) -> dict[str, Any]:
    """Their addresses are the administrator's business."""
    entries = request.app.state.catalog
    shown = []
    for name, oracle in sorted(settings().oracles.items()):
        methods = [method for method in entries["attacks"] if able(entries, method, oracle)]
        limits = {"max_queries": oracle.max_queries, "per_second": oracle.per_second}
        shown.append({"name": name, "answers": oracle.answers, "classes": oracle.classes, "methods": methods, **limits})
    return {"data": shown, "next_cursor": None}


@router.post(
    "/{o}/attack",
    status_code=202,
    response_model=wire.Job,
    operation_id="attack_oracle",
    summary="Attack a model elsewhere",
    openapi_extra=problems(404, 413),
)
def attack(
    request: Request, o: OraclePath, body: wire.OracleAttackRequest, principal: Writer, key: IdempotencyKey = None
) -> Response:
    """Black-box attacks alone, inside budgets of queries for each image and for all.

    When the oracle stops answering the job ends with what it has, and its result says so (`complete`, `warnings`).
    """
    oracle = settings().oracles.get(o)
    if oracle is None:
        known = list(settings().oracles)
        raise NotFound("There is no such oracle.", remedy=catalog.nearest(o, known) if known else "None is set up.")
    spec = completed(request.app.state.catalog, oracle, body) | {"oracle": o}
    images = files(body.images or [])
    if "dataset" in spec and not is_repeat(principal.tenant, key):
        with reading() as conn:
            dataset_rows.get(conn, principal.tenant, spec["dataset"])
    if images:
        spec["upload"] = f"uploads/{new_id()}"
        blobs.put(spec["upload"], pack_inputs(images, None))
    answer = accept(request, principal, "oracle", spec, key, same_as=[o, body.model_dump()])
    if images and is_replay(answer):
        blobs.delete_prefix(spec["upload"])
    return answer


def completed(entries: Catalog, oracle: Oracle, body: wire.OracleAttackRequest) -> dict[str, Any]:
    """The spec. Raises InvalidRequest naming what cannot stay."""
    if (body.images is None) == (body.dataset is None):
        raise InvalidRequest("Give images or a dataset, one of the two.", field="/images")
    methods = [name for name in entries["attacks"] if able(entries, name, oracle)]
    if body.method not in methods:
        raise InvalidRequest(
            f"This cannot be made against an oracle that answers with {oracle.answers}; {', '.join(methods)} can.",
            field="/method",
        )
    given = body.model_dump(exclude_none=True, exclude={"images"})
    return given | {"params": catalog.complete(own_settings(entries, body.method), body.params, "/params")}


def able(entries: Catalog, method: str, oracle: Oracle) -> bool:
    """Whether the attack sees no more than the oracle shows, and is one on classifiers."""
    entry = entries["attacks"][method]
    return entry["access"] in SEES[oracle.answers] and VICTIM in entry.get("victims", [VICTIM])


def own_settings(entries: Catalog, method: str) -> dict[str, Any]:
    """The schema of the attack's own settings: not what the operation on models adds to them."""
    entry = entries["attacks"][method]
    schema = entry["params"]
    own = entry.get("settings", schema["properties"])
    return schema | {"properties": {name: spec for name, spec in schema["properties"].items() if name in own}}


def files(texts: list[str]) -> list[bytes]:
    """Images from base64. Raises what the client can mend."""
    found = []
    for index, text in enumerate(texts):
        try:
            image = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("This is no base64.", field=f"/images/{index}") from None
        if len(image) > settings().max_image_bytes:
            raise TooLarge(f"An image may have {settings().max_image_bytes} bytes.", field=f"/images/{index}")
        if not MAGIC.match(image):
            raise InvalidImage(
                "This is no PNG, JPEG or WebP.", field=f"/images/{index}", remedy=f"Send {', '.join(IMAGE_TYPES)}."
            )
        found.append(image)
    return found
