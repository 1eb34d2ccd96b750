"""POST /v1/trainings: everything that can be known without torch is checked before the job is accepted."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.accepting import IdempotencyKey, accept, check_space, is_repeat
from app.api.access import Writer
from app.api.openapi import problems
from app.api.strict_json import StrictRoute
from app.core import catalog, dataset_rows, jobs, model_rows, names, wire
from app.core.builtins import Builtin
from app.core.catalog import Catalog
from app.core.database import reading
from app.core.errors import InvalidDataset, InvalidRequest, NotFound
from app.core.phrases import joined

router = APIRouter(prefix="/v1/trainings", tags=["trainings"], route_class=StrictRoute)
OF_LAYOUT = {
    "plain": {"images"},
    "labelled": {"images", "labels"},
    "paired": {"input", "target"},
    "unpaired": {"a", "b"},
    "segmentation": {"images", "masks"},
    "attributes": {"images"},
}


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="create_training",
    summary="Train a model",
    openapi_extra=problems(404, 409, 413),
)
def create(request: Request, body: wire.TrainingRequest, principal: Writer, key: IdempotencyKey = None) -> Response:
    """An empty config trains well. Raises the config's faults field by field; the completed config is in the job."""
    spec = completed(request.app.state.catalog, body)
    if not is_repeat(principal.tenant, key):
        check_space(principal.tenant)
        check_dataset(request.app.state.catalog["families"][body.family], principal.tenant, body.dataset)
        check_origins(principal.tenant, body)
    return accept(request, principal, "training", spec, key)


def completed(entries: Catalog, body: wire.TrainingRequest) -> dict[str, Any]:
    """The spec of the job."""
    family = catalog.family(entries, body.family)
    config = catalog.complete(family["config"], body.config, "/config")
    name = names.checked(body.name or f"{body.family}-{body.dataset}"[:64], "/name")
    spec: dict[str, Any] = {"family": body.family, "dataset": body.dataset, "config": config, "name": name}
    given = {"seed": body.seed, "init_from": body.init_from, "fork_from": body.fork_from}
    if body.init_from and body.fork_from:
        raise InvalidRequest("Give init_from or fork_from, not both.", field="/fork_from")
    return spec | {field: value for field, value in given.items() if value is not None}


def check_dataset(family: dict[str, Any], tenant: str, name: str) -> None:
    """Raises NotFound, or InvalidDataset when the family cannot learn from it."""
    with reading() as conn:
        row = dataset_rows.get(conn, tenant, name)
    layout = row.layout if isinstance(row, Builtin) else row["layout"]
    columns = OF_LAYOUT[layout] if isinstance(row, Builtin) else set(row["facts"]["columns"].get("train", {}))
    missing = [column for column in family["needs"] if column not in columns]
    if missing:
        raise InvalidDataset(
            f"This family needs {joined(missing)}, which the dataset lacks.",
            field="/dataset",
            remedy=f"Use a dataset of layout {joined(family['layouts'], 'or')}; this one is {layout}.",
        )
    if layout not in family["layouts"]:
        raise InvalidDataset(
            f"This family learns from datasets of layout {joined(family['layouts'], 'or')}; this one is {layout}.",
            field="/dataset",
        )


def check_origins(tenant: str, body: wire.TrainingRequest) -> None:
    """Raises NotFound for a model or a job to start from that is not there."""
    with reading() as conn:
        if body.init_from:
            model_rows.resolve(conn, tenant, body.init_from)
        if body.fork_from and jobs.get(conn, tenant, body.fork_from)["kind"] != "training":
            raise NotFound("There is no training with this id.", field="/fork_from")
