"""/v1/defences: a classifier behind defences, made into a model of its own by a job."""

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
from app.core.errors import InvalidRequest

router = APIRouter(prefix="/v1/defences", tags=["defences"], route_class=StrictRoute)


@router.get("", operation_id="list_defences", summary="Stages that can stand in front of a classifier")
def kinds(request: Request, principal: Reader) -> dict[str, Any]:
    """Stages with the schema of their settings, and the detectors of adversarial images."""
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
    """The result is a model that classifies, can be attacked (through its defences), certified, and asked to detect."""
    entries = request.app.state.catalog
    spec = body.model_dump(exclude_none=True)
    spec["stages"] = [
        completed(entries, "defences", stage, f"/stages/{index}") for index, stage in enumerate(body.stages)
    ]
    spec["detector"] = completed(entries, "detectors", body.detector, "/detector")
    if not is_repeat(principal.tenant, key):
        check_space(principal.tenant)
        found = require_model(principal.tenant, body.model, ("Classifies",), "A defence")
        spec["model"] = found.exact
        check_named(entries, principal.tenant, spec)
    return accept(request, principal, "defence", spec, key, same_as=body.model_dump())


def completed(entries: Catalog, section: str, asked: dict[str, Any], pointer: str) -> dict[str, Any]:
    """One stage or detector with its defaults. Raises InvalidRequest naming the member that cannot stay."""
    known, kind = entries.get(section, {}), asked.get("kind")
    if not isinstance(kind, str) or kind not in known:
        remedy = catalog.nearest(kind, list(known)) if isinstance(kind, str) else f"Known: {', '.join(known)}."
        raise InvalidRequest("There is no such kind.", field=f"{pointer}/kind", remedy=remedy)
    values = {name: value for name, value in asked.items() if name != "kind"}
    return {"kind": kind, **catalog.complete(known[kind]["params"], values, pointer)}


def check_named(entries: Catalog, tenant: str, spec: dict[str, Any]) -> None:
    """Models and datasets that the spec names become exact versions. Raises NotFound."""
    for pointer, section, part in [
        *((f"/stages/{index}", "defences", stage) for index, stage in enumerate(spec["stages"])),
        ("/detector", "detectors", spec["detector"]),
    ]:
        for name, field in entries[section][part["kind"]]["params"]["properties"].items():
            if field.get("format") == "model":
                found = require_model(tenant, part[name], (), "A defence", f"{pointer}/{name}")
                part[name] = found.exact
    if "dataset" in spec:
        require_dataset(tenant, spec["dataset"], ("images",), "A detector")
