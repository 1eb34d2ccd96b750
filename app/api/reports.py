"""/v1/reports: a model looked at over a whole dataset, as a job."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.accepting import IdempotencyKey, accept, is_repeat
from app.api.access import Reader, Writer
from app.api.openapi import problems
from app.api.strict_json import StrictRoute
from app.core import catalog, dataset_rows, model_rows, wire
from app.core.builtins import Builtin
from app.core.database import reading
from app.core.errors import InvalidDataset, UnsupportedOperation

router = APIRouter(prefix="/v1/reports", tags=["reports"], route_class=StrictRoute)


@router.get("", operation_id="list_reports", summary="Kinds of reports")
def kinds(request: Request, principal: Reader) -> dict[str, Any]:
    """What each needs of a model and a dataset, and the schema of its `params`. Reports made are jobs."""
    entries = request.app.state.catalog.get("reports", {})
    return {"data": [{"name": name, **entry} for name, entry in entries.items()], "next_cursor": None}


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="create_report",
    summary="Report on a model over a dataset",
    openapi_extra=problems(404, 409, 413),
)
def create(request: Request, body: wire.ReportRequest, principal: Writer, key: IdempotencyKey = None) -> Response:
    """The result has numbers and tables; plots, sheets and the whole report as JSON are files of the job."""
    entry = catalog.report(request.app.state.catalog, body.report)
    spec = body.model_dump(exclude_none=True)
    spec["params"] = catalog.complete(entry["params"], body.params, "/params")
    if not is_repeat(principal.tenant, key):
        spec["model"] = check_model(entry, principal.tenant, body)
        check_dataset(entry, principal.tenant, body.dataset)
    return accept(request, principal, "report", spec, key, same_as=body.model_dump())


def check_model(entry: dict[str, Any], tenant: str, body: wire.ReportRequest) -> str:
    """The exact version to report on. Raises NotFound, or UnsupportedOperation for a model that lacks a capability."""
    with reading() as conn:
        found = model_rows.resolve(conn, tenant, body.model)
    missing = set(entry["needs"]) - set(found.capabilities)
    if missing:
        raise UnsupportedOperation(
            f"The report {body.report} needs a model with {', '.join(sorted(missing))}; {found.name} is a"
            f" {found.family}.",
            field="/model",
        )
    return f"{found.name}@{found.digest}"


def check_dataset(entry: dict[str, Any], tenant: str, name: str) -> None:
    """Raises NotFound, or InvalidDataset when a column is missing. A built-in one is imported on the way."""
    with reading() as conn:
        row = dataset_rows.get(conn, tenant, name)
    if isinstance(row, Builtin):
        return
    missing = set(entry["columns"]) - row["facts"]["columns"].get("train", {}).keys()
    if missing:
        raise InvalidDataset(
            f"The report needs {', '.join(sorted(missing))}, which the dataset lacks.", field="/dataset"
        )
