"""What an operation looks at beside the model and the request: a dataset, or what a report has fitted."""

from typing import Any

from anyio.to_thread import run_sync

from app.core.catalog.builtin_datasets import Builtin
from app.core.errors import Conflict, InvalidRequest, NotFound
from app.core.jobs import state as jobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import reading
from app.core.store.models import Found


async def found(entry: dict[str, Any], tenant: str, model: Found, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters `dataset` and `report` as a worker takes them: the exact arrays and the exact file they mean."""
    exact = {}
    if entry.get("dataset") and params.get("dataset"):
        row = await run_sync(imported, tenant, params["dataset"])
        exact["dataset"] = f"{row['name']}@{row['digest']}"
    if entry.get("report"):
        exact["report"] = await run_sync(fitted, tenant, model, entry["report"], params["report"])
    return exact


def imported(tenant: str, name: str) -> dict[str, Any]:
    """The row of a dataset whose arrays are there. Raises NotFound, or Conflict for a built-in one not yet imported."""
    with reading() as conn:
        row = dataset_rows.get(conn, tenant, name)
    if isinstance(row, Builtin):
        remedy = f"POST /v1/datasets?builtin={row.id}, or train on it."
        raise Conflict("This built-in dataset is not imported yet.", remedy=remedy)
    return row


def fitted(tenant: str, model: Found, kind: str, job_id: str) -> str:
    """The key of the tensors that a report of this `kind` fitted on this very model."""
    try:
        with reading() as conn:
            row = jobs.get(conn, tenant, job_id)
    except NotFound:
        row = {"kind": None, "spec": {}}
    if row["kind"] != "report" or row["spec"].get("report") != kind:
        remedy = f'POST /v1/reports {{"report": "{kind}", ...}} and give the id of its job.'
        raise NotFound(f"There is no report {kind} with this id.", field="report", remedy=remedy)
    if row["state"] != "succeeded":
        remedy = f"Follow /v1/jobs/{job_id} and come back when it has succeeded."
        raise Conflict(f"This report is {row['state']}.", field="report", remedy=remedy)
    if row["result"]["version"] != model.digest:
        remedy = f"Ask {row['result']['model']}, or report on this version."
        raise InvalidRequest("The report was made for another version of a model.", field="report", remedy=remedy)
    if "fitted.safetensors" not in row["result"]["artifacts"]:
        raise InvalidRequest("This report has kept nothing to use.", field="report", remedy="Make it again.")
    return row["result"]["artifacts"]["fitted.safetensors"]
