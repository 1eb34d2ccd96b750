"""POST /v1/trainings: the request is checked as far as possible before the job is accepted."""

import time
from typing import Annotated, Any

import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from app.api.http.auth import Writer, submit
from app.api.http.openapi import problems
from app.api.http.strict import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat
from app.api.jobs.requirements import Data, facts_of, require_dataset, require_model
from app.core import catalog, wire
from app.core.calls.client import Call
from app.core.catalog import Catalog
from app.core.catalog.builtins import Builtin
from app.core.catalog.describe import joined
from app.core.errors import AnamorphError, InvalidConfig, InvalidDataset, InvalidRequest, NotFound
from app.core.jobs import checkpoints, workers
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading

router = APIRouter(prefix="/v1/trainings", tags=["trainings"], route_class=StrictRoute)
VALIDATION_SECONDS = 2.0
LENGTH = ("images", "epochs")
log = structlog.get_logger(__name__)


@router.post(
    "",
    status_code=202,
    response_model=wire.AcceptedTraining,
    operation_id="create_training",
    summary="Train a model",
    responses={200: {"description": "With dry_run: the complete request.", "model": wire.CheckedTraining}},
    openapi_extra=problems(404, 409, 413, 504),
)
async def create(
    request: Request,
    body: wire.TrainingRequest,
    principal: Writer,
    dry_run: Annotated[bool, Query(description="Check and complete the settings without training.")] = False,
    key: IdempotencyKey = None,
) -> Response:
    """An empty config trains well: defaults depend on the dataset. The job has the complete config."""
    key = None if dry_run else key
    spec, data = await run_sync(checked_spec, request.app.state.catalog, body, principal.tenant, key)
    if dry_run:
        checked = await ask_worker(request, spec, data)
        return JSONResponse({"request": spec | {"config": checked["config"]}, "forecast": checked.get("forecast")})
    forecast = None if data is None else await validate_training(request, spec, data)
    same_as = body.model_dump(mode="json") if body.fork_from else None  # what a fork inherits may change meanwhile
    return await run_sync(accept, request, principal, "training", spec, key, same_as, {"forecast": forecast})


def checked_spec(
    entries: Catalog, body: wire.TrainingRequest, tenant: str, key: str | None
) -> tuple[dict[str, Any], Data | None]:
    """The spec of the job and its dataset; None for a repeated request, whose first answer is repeated."""
    body, origin = inherit(tenant, body)
    if origin is not None:
        body = from_shared_checkpoint(entries, body, origin)
    spec = complete_spec(entries, body)
    if is_repeat(tenant, key):
        return spec, None
    check_space(tenant)
    data = check_dataset(entries["families"][spec["family"]], tenant, spec["dataset"])
    check_init(tenant, body)
    check_fork(body, origin)
    check_devices(body)
    return spec, data


def inherit(tenant: str, body: wire.TrainingRequest) -> tuple[wire.TrainingRequest, dict[str, Any] | None]:
    """The request with the fields that a fork inherits, and the row of the training that it forks. Raises NotFound."""
    if body.init_from and body.fork_from:
        raise InvalidRequest("init_from and fork_from exclude each other. Send one of them.", field="/fork_from")
    if body.fork_from is None:
        for name in ("family", "dataset"):
            if getattr(body, name) is None:
                raise InvalidRequest(f"{name} is required.", field=f"/{name}")
        return body, None
    with reading() as conn:
        origin = jobs.get(conn, tenant, body.fork_from.job)
    if origin["kind"] != "training":
        raise NotFound(f"Job {origin['id']} is no training.", field="/fork_from")
    spec = origin["spec"]
    same = body.family in (None, spec["family"])
    asked = spec.get("config", {})
    complete = (origin["result"] or {}).get("config") or asked
    config = {name: value for name, value in complete.items() if name not in LENGTH}
    if not {*LENGTH, "effort"} & body.config.keys():
        config |= {name: asked.get(name) for name in LENGTH}
    config = {name: value for name, value in config.items() if same and value is not None}
    fields = {name: getattr(body, name) or spec[name] for name in ("family", "dataset")}
    fields |= {"config": config | body.config, "seed": spec.get("seed") if body.seed is None else body.seed}
    return body.model_copy(update=fields), origin


def from_shared_checkpoint(
    entries: Catalog, body: wire.TrainingRequest, origin: dict[str, Any]
) -> wire.TrainingRequest:
    """A fork with another effort that names no checkpoint: from the last one that is also one of the longer training.

    There is one where the first updates of a family do not depend on the length (`length_free_until` of its entry).
    """
    if body.fork_from.images is not None or "effort" not in body.config or body.family != origin["spec"]["family"]:
        return body
    share = entries["families"].get(body.family, {}).get("length_free_until", 0.0)
    shared = share * ((origin["progress"] or {}).get("total") or 0)
    points = [images for images in checkpoints.points(origin["checkpoint"]) if images <= shared]
    return body.model_copy(update={"fork_from": wire.Fork(job=origin["id"], images=points[-1])}) if points else body


def complete_spec(entries: Catalog, body: wire.TrainingRequest) -> dict[str, Any]:
    """The spec of the job."""
    family = catalog.family(entries, body.family)
    config = catalog.complete(family["config"], body.config, "/config")
    if body.fork_from:  # the checkpoint has the other settings
        config = {name: config[name] for name in body.config}
    name = body.name or f"{body.family}-{body.dataset}"[:64]
    spec: dict[str, Any] = {"family": body.family, "dataset": body.dataset, "config": config, "name": name}
    fork = body.fork_from and body.fork_from.model_dump(exclude_none=True)
    measure = None if body.measure == "full" else body.measure
    optional = {"seed": body.seed, "devices": body.devices, "accumulate": body.accumulate}
    optional |= {"measure": measure, "init_from": body.init_from, "fork_from": fork}
    return spec | {field: value for field, value in optional.items() if value is not None}


def check_dataset(family: dict[str, Any], tenant: str, name: str) -> Data:
    """Raises NotFound, or InvalidDataset when the family cannot learn from it."""
    data = require_dataset(tenant, name, family["needs"], "This family")
    layout = data.layout if isinstance(data, Builtin) else data["layout"]
    if layout not in family["layouts"]:
        raise InvalidDataset(
            f"This family trains on datasets of layout {joined(family['layouts'], 'or')}; {name} has layout {layout}.",
            field="/dataset",
        )
    return data


def check_init(tenant: str, body: wire.TrainingRequest) -> None:
    """Raises NotFound when the model to start from does not exist."""
    if body.init_from:
        require_model(tenant, body.init_from, (), "A start", "/init_from")


def check_fork(body: wire.TrainingRequest, origin: dict[str, Any] | None) -> None:
    """Raises InvalidRequest when the training to fork has ended and the checkpoint does not exist."""
    if origin is None:
        return
    points, images = checkpoints.points(origin["checkpoint"]), body.fork_from.images
    if images not in points if images is not None else not points and origin["state"] in jobs.TERMINAL:
        raise InvalidRequest(
            "The training has no checkpoint at this point.",
            field="/fork_from/images" if images is not None else "/fork_from",
            remedy=f"It has one after {joined(list(map(str, points)), 'or')} images."
            if points
            else f"Checkpoints are kept for {settings().checkpoint_days:g} days after a training has ended.",
        )


def check_devices(body: wire.TrainingRequest) -> None:
    """Raises InvalidRequest when no live worker has as many devices as the training asks for."""
    if (body.devices or 1) == 1:
        return
    with reading() as conn:
        most = workers.most_devices(conn)
    if most is not None and body.devices > most:
        raise InvalidRequest(
            f"devices must be at most {most}, which is what a worker of this service has; you sent {body.devices}.",
            field="/devices",
        )


async def validate_training(request: Request, spec: dict[str, Any], data: Data) -> dict[str, Any] | None:
    """Asks an inference worker whether the training could begin: only models know which settings fit a dataset.

    Returns its forecast. Raises InvalidConfig or InvalidDataset, with a pointer into the body. Without an answer within
    `VALIDATION_SECONDS` nothing is raised: the job is accepted and checks for itself.
    """
    try:
        return (await ask_worker(request, spec, data)).get("forecast")
    except (InvalidConfig, InvalidDataset) as error:
        if isinstance(data, Builtin) and data.layout == "attributes" and isinstance(error, InvalidDataset):
            return None  # its ages and identities are known only after the import
        raise
    except AnamorphError as error:
        log.info("validation.skipped", family=spec["family"], code=error.code)
        return None


async def ask_worker(request: Request, spec: dict[str, Any], data: Data) -> dict[str, Any]:
    """`config` with the settings that depend on the dataset, and `forecast`. Raises what the worker or call raises."""
    params = {"family": spec["family"], "config": spec["config"], "facts": facts_of(data)}
    call = Call(spec["family"], "rehearsal", params, deadline=time.monotonic() + VALIDATION_SECONDS)
    try:
        return (await submit(request, call)).facts
    except (InvalidConfig, InvalidDataset) as error:
        error.field = f"/{error.field or 'config'}"
        raise
