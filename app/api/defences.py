"""/v1/defences: a classifier behind defences, made into a model of its own by a job."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.accepting import IdempotencyKey, accept, check_space, is_repeat
from app.api.access import Reader, Writer
from app.api.openapi import problems
from app.api.strict_json import StrictRoute
from app.core import catalog, dataset_rows, model_rows, wire
from app.core.catalog import Catalog
from app.core.database import reading
from app.core.errors import InvalidRequest, NotFound, UnsupportedOperation

router = APIRouter(prefix="/v1/defences", tags=["defences"], route_class=StrictRoute)
NEEDED = "Scores"


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
        spec["model"] = check_model(principal.tenant, body.model)
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


def check_model(tenant: str, reference: str) -> str:
    """The exact version to defend. Raises NotFound, or UnsupportedOperation when it is no classifier."""
    with reading() as conn:
        found = model_rows.resolve(conn, tenant, reference)
    if NEEDED not in found.capabilities:
        raise UnsupportedOperation(
            f"Only a classifier can be defended; {found.name} is a {found.family}.", field="/model"
        )
    return f"{found.name}@{found.digest}"


def check_named(entries: Catalog, tenant: str, spec: dict[str, Any]) -> None:
    """Models and datasets that the spec names become exact versions. Raises NotFound."""
    with reading() as conn:
        for pointer, section, part in [
            *((f"/stages/{index}", "defences", stage) for index, stage in enumerate(spec["stages"])),
            ("/detector", "detectors", spec["detector"]),
        ]:
            for name, field in entries[section][part["kind"]]["params"]["properties"].items():
                if field.get("format") == "model":
                    part[name] = _pinned(conn, tenant, part[name], f"{pointer}/{name}")
        if "dataset" in spec:
            dataset_rows.get(conn, tenant, spec["dataset"])


def _pinned(conn, tenant: str, reference: str, pointer: str) -> str:
    try:
        found = model_rows.resolve(conn, tenant, reference)
    except NotFound as error:
        raise NotFound(error.detail, field=pointer, remedy=error.remedy) from None
    return f"{found.name}@{found.digest}"
