"""Datasets and reports that the parameters of an operation name, as the exact files that a worker reads."""

from typing import Any

from anyio.to_thread import run_sync

from app.core.catalog.builtins import Builtin
from app.core.errors import Conflict, InvalidRequest, NotFound
from app.core.jobs import state as jobs
from app.core.store import datasets as dataset_rows
from app.core.store.database import reading
from app.core.store.models import ResolvedModel


async def exact(
    entry: dict[str, Any], tenant: str, model: ResolvedModel, params: dict[str, Any]
) -> tuple[dict[str, Any], int | None]:
    """The parameters `dataset` and `report` as a worker takes them: name@digest, and the key of a blob.

    And the number of images of the dataset, None where it is the model's own.
    """
    references, images = {}, None
    if entry.get("dataset") and params.get("dataset"):
        row = await run_sync(imported, tenant, params["dataset"])
        references["dataset"] = f"{row['name']}@{row['digest']}"
        images = sum(max(rows.values(), default=0) for rows in row["facts"]["columns"].values())
    if entry.get("report"):
        references["report"] = await run_sync(fitted, tenant, model, entry["report"], params["report"])
    return references, images


def imported(tenant: str, name: str) -> dict[str, Any]:
    """The row of an imported dataset. Raises NotFound, or Conflict for a built-in one that is not imported yet."""
    with reading() as conn:
        row = dataset_rows.get(conn, tenant, name)
    if isinstance(row, Builtin):
        remedy = f"Import it: POST /v1/datasets?builtin={row.id}."
        raise Conflict(f"The built-in dataset {row.id} is not imported yet.", remedy=remedy)
    return row


def fitted(tenant: str, model: ResolvedModel, kind: str, job_id: str) -> str:
    """The key of the tensors that a report of this `kind` fitted on this version of the model.

    Raises NotFound, Conflict or InvalidRequest for any other job.
    """
    try:
        with reading() as conn:
            row = jobs.get(conn, tenant, job_id)
    except NotFound:
        row = {"kind": None, "spec": {}}
    if row["kind"] != "report" or row["spec"].get("report") != kind:
        remedy = f'Make one with POST /v1/reports {{"report": "{kind}", ...}} and send the id of its job.'
        raise NotFound(f"No {kind} report with the id {job_id[:80]!r} was found.", field="report", remedy=remedy)
    if row["state"] != "succeeded":
        remedy = f"Wait until /v1/jobs/{job_id} has succeeded."
        raise Conflict(f"The report is {row['state']}, not succeeded.", field="report", remedy=remedy)
    if row["result"]["version"] != model.digest:
        made_for = row["result"]["model"]
        remedy = f"Use {made_for}, or make a report on {model.exact}."
        raise InvalidRequest(f"The report was made for {made_for}, not for this model.", field="report", remedy=remedy)
    if "fitted.safetensors" not in row["result"]["artifacts"]:
        raise InvalidRequest("The report has no file fitted.safetensors.", field="report", remedy="Make it again.")
    return row["result"]["artifacts"]["fitted.safetensors"]
