"""/v1/reports: reports on a model over a whole dataset, as jobs."""

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
from app.core.catalog.builtins import Builtin
from app.core.catalog.describe import joined, sent
from app.core.errors import InvalidRequest
from app.core.store import datasets as dataset_rows
from app.core.store import models as model_rows
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading

router = APIRouter(prefix="/v1/reports", tags=["reports"], route_class=StrictRoute)


@router.get("", operation_id="list_reports", summary="List kinds of reports")
def kinds(request: Request, principal: Reader) -> dict[str, Any]:
    """The requirements of each on model and dataset, and the schema of its `params`. Finished reports are jobs."""
    entries = request.app.state.catalog.get("reports", {})
    return {"data": [{"name": name, **entry} for name, entry in entries.items()], "next_cursor": None}


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    responses={200: {"description": "With dry_run: the price and the complete request.", "model": wire.Priced}},
    operation_id="create_report",
    summary="Report on a model over a dataset",
    openapi_extra=problems(404, 409, 413),
)
def create(
    request: Request,
    body: wire.ReportRequest,
    principal: Writer,
    key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Check and price the report without making it.")] = False,
) -> Response:
    """The result has numbers and tables. Files of the job: plots, sheets, a page to print, the whole report as JSON.
    The price of a report with attacks, in passes through the model, is in `request.price`.
    """
    entries = request.app.state.catalog
    entry = catalog.report(entries, body.report)
    spec = body.model_dump(exclude_none=True, exclude={"attacks", "eps"})
    spec["params"] = complete_params(entries, entry, body)
    if dry_run or not is_repeat(principal.tenant, key):
        model = require_model(principal.tenant, body.model, entry["needs"], f"The report {body.report}")
        spec["model"] = model.exact
        data = require_dataset(principal.tenant, body.dataset, entry["columns"], f"The report {body.report}")
        check_size(principal.tenant, model, data)
        spec["params"] |= exact_references(entries, principal.tenant, spec["params"])
        if entry.get("price"):
            spec["price"] = price(entries, entry, principal.tenant, spec)
    if dry_run:
        return JSONResponse({"price": spec.get("price"), "request": spec})
    return accept(request, principal, "report", spec, key, same_as=body.model_dump())


def complete_params(entries: Catalog, entry: dict[str, Any], body: wire.ReportRequest) -> dict[str, Any]:
    """The params with all defaults, also of the attacks. Raises InvalidRequest naming the invalid one."""
    short = {name: value for name in ("attacks", "eps") if (value := getattr(body, name)) is not None}
    for name in short.keys() & body.params.keys():
        raise InvalidRequest(f"{name} is both in the body and in params. Send it once.", field=f"/{name}")
    params = catalog.complete(entry["params"], body.params | short, "/params")
    if takes_settings(entry):
        params["attacks"] = [
            attack_of(entries, item, params, f"/params/attacks/{place}") for place, item in enumerate(params["attacks"])
        ]
    return params


def takes_settings(entry: dict[str, Any]) -> bool:
    """Whether the attacks of a report may have settings, in place of a name only."""
    items = entry["params"]["properties"].get("attacks", {}).get("items", {})
    return any(branch.get("type") == "object" for branch in items.get("anyOf", ()))


def attack_of(entries: Catalog, item: str | dict[str, Any], params: dict[str, Any], pointer: str) -> dict[str, Any]:
    """One attack of a report: `method` and its complete settings, without those that all attacks have."""
    fields = {"method": item} if isinstance(item, str) else item
    method = fields.get("method")
    if not isinstance(method, str) or method not in entries["attacks"]:
        remedy = catalog.name_hint(str(method), entries["attacks"])
        detail = "method is required." if method is None else f"Unknown attack {sent(method)}."
        raise InvalidRequest(detail, field=pointer, remedy=remedy)
    entry = entries["attacks"][method]
    norm = params.get("norm", "linf")
    if norm not in entry["norms"]:
        raise InvalidRequest(
            f"{method} does not support the norm {norm}; it supports {joined(entry['norms'])}.", field=pointer
        )
    common = {"label", "target", "seed", "control", "sweep", "eps", "norm"}
    for name in common & fields.keys():
        raise InvalidRequest(
            f"{name} is the same for all attacks. Set it in params, not in an attack.", field=f"{pointer}/{name}"
        )
    own = entry["params"] | {
        "properties": {name: spec for name, spec in entry["params"]["properties"].items() if name in entry["settings"]}
    }
    values = {name: value for name, value in fields.items() if name != "method"}
    settings = catalog.complete(own, values, pointer)
    return {"method": method} | {name: value for name, value in settings.items() if name not in common}


def exact_references(entries: Catalog, tenant: str, params: dict[str, Any]) -> dict[str, Any]:
    """The exact versions of the models that the params name. Raises NotFound, also for a perturbation."""
    exact: dict[str, Any] = {}
    with reading() as conn:
        if others := params.get("others"):
            resolved = [model_rows.resolve(conn, tenant, name) for name in others]
            exact["others"] = [other.exact for other in resolved]
        for name in params.get("perturbations") or ():
            perturbation_rows.get(conn, tenant, name)
    return exact


def price(entries: Catalog, entry: dict[str, Any], tenant: str, spec: dict[str, Any]) -> dict[str, int]:
    """The maximum number of passes of the report. Raises QuotaExceeded above the limit of a job."""
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
    if own := card.get("config", {}).get("detector"):  # the detector of a defended model is already trained
        params = params | {"detector": {"kind": own["kind"], "images": 0}}
    passes = prices.of_report(entries, entry, params, shape)
    prices.check(passes)
    return passes
