"""/v1/defences: a job makes a new model of a classifier and the defences in front of it."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat
from app.api.jobs.requirements import require_dataset, require_model
from app.core import catalog, wire
from app.core.catalog import Catalog
from app.core.catalog.describe import sent
from app.core.errors import InvalidRequest

router = APIRouter(prefix="/v1/defences", tags=["defences"], route_class=StrictRoute)


@router.get("", operation_id="list_defences", summary="List defences and detectors")
def kinds(request: Request, principal: Reader) -> dict[str, Any]:
    """Stages in front of a classifier and detectors of adversarial images, with the schemas of their settings."""
    entries = request.app.state.catalog
    stages, detectors = (
        [{"name": name, **entry} for name, entry in entries.get(section, {}).items()]
        for section in ("defences", "detectors")
    )
    return {"data": stages, "detectors": detectors, "next_cursor": None}


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="create_defence",
    summary="Put defences in front of a classifier",
    openapi_extra=problems(404, 409, 413),
)
def create(request: Request, body: wire.DefenceRequest, principal: Writer, key: IdempotencyKey = None) -> Response:
    """The new model supports classify, attack (through its defences), certify and detect-adversarial."""
    entries = request.app.state.catalog
    spec = body.model_dump(exclude_none=True)
    spec["stages"] = [
        complete_part(entries, "defences", stage, f"/stages/{index}") for index, stage in enumerate(body.stages)
    ]
    spec["detector"] = complete_part(entries, "detectors", body.detector, "/detector")
    if not is_repeat(principal.tenant, key):
        check_space(principal.tenant)
        spec["model"] = require_model(principal.tenant, body.model, ("Classifies",), "A defence").exact
        resolve_references(entries, principal.tenant, spec)
    return accept(request, principal, "defence", spec, key, same_as=body.model_dump())


def complete_part(entries: Catalog, section: str, part: dict[str, Any], pointer: str) -> dict[str, Any]:
    """A stage or detector with its defaults. Raises InvalidRequest naming the invalid setting."""
    parts, kind = entries.get(section, {}), part.get("kind")
    if not isinstance(kind, str) or kind not in parts:
        detail = "kind is required." if kind is None else f"Unknown kind {sent(kind)}."
        raise InvalidRequest(detail, field=f"{pointer}/kind", remedy=catalog.name_hint(str(kind), parts))
    values = {name: value for name, value in part.items() if name != "kind"}
    return {"kind": kind, **catalog.complete(parts[kind]["params"], values, pointer)}


def resolve_references(entries: Catalog, tenant: str, spec: dict[str, Any]) -> None:
    """Replaces the models that the spec names by exact versions, and checks its dataset. Raises NotFound."""
    for pointer, section, part in [
        *((f"/stages/{index}", "defences", stage) for index, stage in enumerate(spec["stages"])),
        ("/detector", "detectors", spec["detector"]),
    ]:
        for name, field in entries[section][part["kind"]]["params"]["properties"].items():
            if field.get("format") == "model":
                part[name] = require_model(tenant, part[name], (), "A defence", f"{pointer}/{name}").exact
    if "dataset" in spec:
        require_dataset(tenant, spec["dataset"], ("images",), "A detector")
