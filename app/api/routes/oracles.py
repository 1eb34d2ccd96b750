"""/v1/oracles: remote models that the administrator allows to be attacked, and the jobs that attack them."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.calls.inputs import check_image
from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.paths import OraclePath
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, is_repeat, is_replay
from app.core import catalog, wire
from app.core.calls.messages import pack_inputs
from app.core.catalog import Catalog
from app.core.catalog.describe import quoted
from app.core.errors import InvalidRequest, NotFound
from app.core.images import from_base64, read_headers
from app.core.oracles import Oracle
from app.core.settings import settings
from app.core.store import blobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import new_id, reading

router = APIRouter(prefix="/v1/oracles", tags=["oracles"], route_class=StrictRoute)
ACCESS = {"scores": ("scores", "labels"), "labels": ("labels",)}
"""The `access` of the attacks that can be made on an oracle, by what it answers with."""
VICTIM = "Classifies"


@router.get("", operation_id="list_oracles", summary="Remote models that may be attacked")
def every(request: Request, principal: Reader) -> dict[str, Any]:
    """What each answers with, its limits, and the attacks that can be made on it. URLs are not listed."""
    entries = request.app.state.catalog
    oracles = []
    for name, oracle in sorted(settings().oracles.items()):
        methods = [method for method in entries["attacks"] if can_attack(entries, method, oracle)]
        limits = {"max_queries": oracle.max_queries, "per_second": oracle.per_second}
        facts = {"name": name, "answers": oracle.answers, "classes": oracle.classes, "methods": methods}
        oracles.append(facts | limits)
    return {"data": oracles, "next_cursor": None}


@router.post(
    "/{o}/attack",
    status_code=202,
    response_model=wire.Job,
    operation_id="attack_oracle",
    summary="Attack a remote model",
    openapi_extra=problems(404, 413),
)
def attack(
    request: Request, o: OraclePath, body: wire.OracleAttackRequest, principal: Writer, key: IdempotencyKey = None
) -> Response:
    """Only black-box attacks, within budgets of queries for each image and for all images.

    When the oracle stops answering, the job succeeds with the results so far and says so (`complete`, `warnings`).
    """
    oracle = settings().oracles.get(o)
    if oracle is None:
        remedy = catalog.name_hint(o, settings().oracles) or "The administrator has set up none (ANAMORPH_ORACLES)."
        raise NotFound(f"Oracle {quoted(o)} was not found.", remedy=remedy)
    spec = complete_spec(request.app.state.catalog, oracle, body) | {"oracle": o}
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


def complete_spec(entries: Catalog, oracle: Oracle, body: wire.OracleAttackRequest) -> dict[str, Any]:
    """The spec of the job. Raises InvalidRequest naming the invalid field."""
    if (body.images is None) == (body.dataset is None):
        raise InvalidRequest("Send either images or dataset.", field="/images")
    methods = [name for name in entries["attacks"] if can_attack(entries, name, oracle)]
    if body.method not in methods:
        raise InvalidRequest(
            f"{quoted(body.method)} cannot attack an oracle that answers with {oracle.answers}. "
            f"Choose one of: {', '.join(methods)}.",
            field="/method",
        )
    fields = body.model_dump(exclude_none=True, exclude={"images"})
    return fields | {"params": catalog.complete(own_settings(entries, body.method), body.params, "/params")}


def can_attack(entries: Catalog, method: str, oracle: Oracle) -> bool:
    """Whether the attack needs no more than the oracle answers, and is one on classifiers."""
    entry = entries["attacks"][method]
    return entry["access"] in ACCESS[oracle.answers] and VICTIM in entry.get("victims", [VICTIM])


def own_settings(entries: Catalog, method: str) -> dict[str, Any]:
    """The schema of the attack's own settings, without the parameters that the operation `attack` adds."""
    entry = entries["attacks"][method]
    schema = entry["params"]
    own = entry.get("settings", schema["properties"])
    return schema | {"properties": {name: spec for name, spec in schema["properties"].items() if name in own}}


def files(texts: list[str]) -> list[bytes]:
    """Images from base64. Raises InvalidRequest, TooLarge or InvalidImage."""
    images = [from_base64(text, f"/images/{index}") for index, text in enumerate(texts)]
    for index, image in enumerate(images):
        check_image(image, f"/images/{index}")
    read_headers(images, settings().job_pixels)
    return images
