"""POST /v1/derivations: a job applies a model to a dataset, and the output becomes a new dataset."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.calls.prepare import require_operation
from app.api.http.auth import Writer
from app.api.http.openapi import problems
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, is_repeat
from app.api.jobs.requirements import Data, check_size, columns_of, require_dataset, require_model
from app.api.routes.datasets import check_free
from app.core import catalog, wire
from app.core.catalog import Catalog
from app.core.catalog.describe import quoted
from app.core.errors import InvalidDataset, InvalidRequest

router = APIRouter(prefix="/v1/derivations", tags=["datasets"], route_class=StrictRoute)
IMAGES = ("images", "input", "target", "a", "b")


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="derive_dataset",
    summary="Apply a model to a dataset",
    openapi_extra=problems(404, 409, 413),
)
def derive(request: Request, body: wire.DerivedRequest, principal: Writer, key: IdempotencyKey = None) -> Response:
    """Splits, order, labels and masks are kept, so the new dataset can train a classifier."""
    entries = request.app.state.catalog
    spec = body.model_dump(exclude_none=True)
    spec["params"] = catalog.complete(operation_of(entries, body.operation)["params"], body.params, "/params")
    if not is_repeat(principal.tenant, key):
        check_free(principal.tenant, body.name, key)
        row = require_dataset(principal.tenant, body.dataset, (), "A derivation")
        model = require_model(principal.tenant, body.model, (), "A derivation")
        require_operation(entries, model, body.operation)
        check_column(row, body.column)
        check_size(principal.tenant, model, row, entries["operations"][body.operation]["any_size"])
        spec["model"] = model.exact
    return accept(request, principal, "dataset", spec, key, same_as=body.model_dump())


def operation_of(entries: Catalog, name: str) -> dict[str, Any]:
    """The entry of the catalog. Raises InvalidRequest for an operation that does not give one image for one image."""
    suitable = {key: entry for key, entry in entries["operations"].items() if is_one_to_one(entry)}
    if name not in suitable:
        raise InvalidRequest(
            f"{quoted(name)} does not give one image for one image. Choose one of: {', '.join(suitable)}.",
            field="/operation",
        )
    return suitable[name]


def is_one_to_one(entry: dict[str, Any]) -> bool:
    """Whether an operation gives one image for one image: no sheet, attack or number."""
    images = entry["takes"] == "images" and entry["gives"] == "images"
    return images and not entry["sheet"] and "branches" not in entry["params"]


def check_column(data: Data, column: str | None) -> None:
    """Raises InvalidDataset for a column without images."""
    columns = columns_of(data)
    present = [name for name in IMAGES if name in columns]
    if column and column not in present:
        raise InvalidDataset(
            f"The dataset has no images in the column {column}.",
            field="/column",
            remedy=f"Choose one of: {', '.join(present)}.",
        )
