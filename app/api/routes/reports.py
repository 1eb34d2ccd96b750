"""/v1/reports: a model looked at over a whole dataset, as a job."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from app.api.http.auth import Reader, Writer
from app.api.http.openapi import problems
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, is_repeat
from app.api.jobs.requirements import check_size, require_dataset, require_model
from app.core import catalog, wire
from app.core.catalog import Catalog
from app.core.catalog import cost as prices
from app.core.catalog.builtin_datasets import Builtin
from app.core.catalog.describe import joined
from app.core.errors import InvalidRequest
from app.core.store import datasets as dataset_rows
from app.core.store import models as model_rows
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading

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
    responses={200: {"description": "With dry_run: what it would cost.", "model": wire.Priced}},
    operation_id="create_report",
    summary="Report on a model over a dataset",
    openapi_extra=problems(404, 409, 413),
)
def create(
    request: Request,
    body: wire.ReportRequest,
    principal: Writer,
    key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Check and price the report, but do not make it.")] = False,
) -> Response:
    """The result has numbers and tables; plots, sheets, a page to print and the whole report as JSON are files of the
    job. A report that attacks has its price, in passes through the model, in `request.price`.
    """
    entries = request.app.state.catalog
    entry = catalog.report(entries, body.report)
    spec = body.model_dump(exclude_none=True, exclude={"attacks", "eps"})
    spec["params"] = completed(entries, entry, body)
    if dry_run or not is_repeat(principal.tenant, key):
        found = require_model(principal.tenant, body.model, entry["needs"], f"The report {body.report}")
        spec["model"] = found.exact
        data = require_dataset(principal.tenant, body.dataset, entry["columns"], f"The report {body.report}")
        check_size(principal.tenant, found, data)
        spec["params"] |= beside(entries, principal.tenant, spec["params"])
        if entry.get("price"):
            spec["price"] = price(entries, entry, principal.tenant, spec)
    if dry_run:
        return JSONResponse({"price": spec.get("price"), "request": spec})
    return accept(request, principal, "report", spec, key, same_as=body.model_dump())


def completed(entries: Catalog, entry: dict[str, Any], body: wire.ReportRequest) -> dict[str, Any]:
    """The params with all defaults, the settings of each attack among them. Raises InvalidRequest by name."""
    short = {name: value for name in ("attacks", "eps") if (value := getattr(body, name)) is not None}
    for name in short.keys() & body.params.keys():
        raise InvalidRequest("This is given twice, at the top and in params.", field=f"/{name}")
    params = catalog.complete(entry["params"], body.params | short, "/params")
    if takes_settings(entry):
        params["attacks"] = [
            attack_of(entries, item, params, f"/params/attacks/{place}") for place, item in enumerate(params["attacks"])
        ]
    return params


def takes_settings(entry: dict[str, Any]) -> bool:
    """Whether the attacks of a report come with settings of their own, not by name alone."""
    items = entry["params"]["properties"].get("attacks", {}).get("items", {})
    return any(branch.get("type") == "object" for branch in items.get("anyOf", ()))


def attack_of(entries: Catalog, item: str | dict[str, Any], params: dict[str, Any], pointer: str) -> dict[str, Any]:
    """One attack of a report: `method` and the complete settings that it alone has."""
    given = {"method": item} if isinstance(item, str) else item
    method = given.get("method")
    if not isinstance(method, str) or method not in entries["attacks"]:
        remedy = catalog.nearest(str(method), list(entries["attacks"]))
        raise InvalidRequest("There is no such attack.", field=pointer, remedy=remedy)
    entry = entries["attacks"][method]
    norm = params.get("norm", "linf")
    if norm not in entry["norms"]:
        raise InvalidRequest(f"{method} knows the norm {joined(entry['norms'], 'or')} only.", field=pointer)
    common = {"label", "target", "seed", "control", "sweep", "eps", "norm"}
    for name in common & given.keys():
        raise InvalidRequest("The report decides this for all attacks.", field=f"{pointer}/{name}")
    own = entry["params"] | {
        "properties": {name: spec for name, spec in entry["params"]["properties"].items() if name in entry["settings"]}
    }
    values = {name: value for name, value in given.items() if name != "method"}
    found = catalog.complete(own, values, pointer)
    return {"method": method} | {name: value for name, value in found.items() if name not in common}


def beside(entries: Catalog, tenant: str, params: dict[str, Any]) -> dict[str, Any]:
    """The exact versions of further models and perturbations that the params name. Raises NotFound."""
    found: dict[str, Any] = {}
    with reading() as conn:
        if others := params.get("others"):
            resolved = [model_rows.resolve(conn, tenant, name) for name in others]
            found["others"] = [other.exact for other in resolved]
        for name in params.get("perturbations") or ():
            perturbation_rows.get(conn, tenant, name)
    return found


def price(entries: Catalog, entry: dict[str, Any], tenant: str, spec: dict[str, Any]) -> dict[str, int]:
    """The most passes of the report. Raises QuotaExceeded when these are too many."""
    with reading() as conn:
        card = model_rows.get(conn, tenant, spec["model"])["card"]
        row = dataset_rows.get(conn, tenant, spec["dataset"])
    data, params = card.get("data", {}), spec["params"]
    if isinstance(row, Builtin):
        sides = {"validation": row.count // 5, "train": row.count - row.count // 5}
    else:
        sides = {side: row["facts"]["columns"][side].get("images", 0) for side in ("validation", "train")}
    shape = {side: max(count, 1) for side, count in sides.items()}
    shape |= {"classes": len(data.get("classes") or ()) or 10}
    shape |= {"pixels": data.get("height", 1) * data.get("width", 1) * data.get("channels", 1)}
    if own := card.get("config", {}).get("detector"):  # a defended model is judged by its own, which has learned
        params = params | {"detector": {"kind": own["kind"], "images": 0}}
    found = prices.of_report(entries, entry, params, shape)
    prices.check(found)
    return found
