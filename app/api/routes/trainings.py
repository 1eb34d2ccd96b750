"""POST /v1/trainings: everything that can be known is checked before the job is accepted."""

from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from app.api.http.auth import Writer
from app.api.http.openapi import problems
from app.api.http.strict_json import StrictRoute
from app.api.jobs.accept import IdempotencyKey, accept, check_space, is_repeat
from app.api.jobs.requirements import Data, suitable_dataset, suitable_model
from app.api.jobs.validate_training import rehearse, rehearsed
from app.core import catalog, names, wire
from app.core.catalog import Catalog
from app.core.catalog.builtin_datasets import Builtin
from app.core.catalog.describe import joined
from app.core.errors import InvalidDataset, InvalidRequest, NotFound
from app.core.jobs import checkpoints
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading

router = APIRouter(prefix="/v1/trainings", tags=["trainings"], route_class=StrictRoute)


@router.post(
    "",
    status_code=202,
    response_model=wire.Job,
    operation_id="create_training",
    summary="Train a model",
    responses={200: {"description": "With dry_run: what would be trained.", "model": wire.Rehearsed}},
    openapi_extra=problems(404, 409, 413, 504),
)
async def create(
    request: Request,
    body: wire.TrainingRequest,
    principal: Writer,
    dry_run: Annotated[bool, Query(description="Check and complete the settings, but do not train.")] = False,
    key: IdempotencyKey = None,
) -> Response:
    """An empty config trains well. Raises the config's faults field by field; the completed config is in the job."""
    key = None if dry_run else key
    spec, data = await run_sync(checked, request.app.state.catalog, body, principal.tenant, key)
    if dry_run:
        request.app.state.watch.insist_on_inference()
        return JSONResponse({"request": spec | {"config": await rehearsed(request, spec, data)}})
    if data is not None:
        await rehearse(request, spec, data)
    return await run_sync(accept, request, principal, "training", spec, key)


def checked(
    entries: Catalog, body: wire.TrainingRequest, tenant: str, key: str | None
) -> tuple[dict[str, Any], Data | None]:
    """The spec of the job and its dataset, None for a repeated request: what was promised once is not doubted."""
    body, origin = inherited(tenant, body)
    spec = completed(entries, body)
    if is_repeat(tenant, key):
        return spec, None
    check_space(tenant)
    data = check_dataset(entries["families"][spec["family"]], tenant, spec["dataset"])
    check_init(tenant, body)
    check_fork(body, origin)
    return spec, data


def inherited(tenant: str, body: wire.TrainingRequest) -> tuple[wire.TrainingRequest, dict[str, Any] | None]:
    """The request with what a fork takes over from its origin, and the origin's row. Raises NotFound."""
    if body.init_from and body.fork_from:
        raise InvalidRequest("Give init_from or fork_from, not both.", field="/fork_from")
    if body.fork_from is None:
        for name in ("family", "dataset"):
            if getattr(body, name) is None:
                raise InvalidRequest(f"The field {name} is missing.", field=f"/{name}")
        return body, None
    with reading() as conn:
        origin = jobs.get(conn, tenant, body.fork_from.job)
    if origin["kind"] != "training":
        raise NotFound("There is no training with this id.", field="/fork_from")
    spec = origin["spec"]
    same = body.family in (None, spec["family"])
    config = {name: value for name, value in spec.get("config", {}).items() if same and value is not None}
    if "epochs" in body.config:
        config.pop("images", None)  # it would win
    taken = {name: getattr(body, name) or spec[name] for name in ("family", "dataset")}
    taken |= {"config": config | body.config, "seed": spec.get("seed") if body.seed is None else body.seed}
    return body.model_copy(update=taken), origin


def completed(entries: Catalog, body: wire.TrainingRequest) -> dict[str, Any]:
    """The spec of the job."""
    family = catalog.family(entries, body.family)
    config = catalog.complete(family["config"], body.config, "/config")
    name = names.checked(body.name or f"{body.family}-{body.dataset}"[:64], "/name")
    spec: dict[str, Any] = {"family": body.family, "dataset": body.dataset, "config": config, "name": name}
    fork = body.fork_from and body.fork_from.model_dump(exclude_none=True)
    given = {"seed": body.seed, "init_from": body.init_from, "fork_from": fork}
    return spec | {field: value for field, value in given.items() if value is not None}


def check_dataset(family: dict[str, Any], tenant: str, name: str) -> Data:
    """Raises NotFound, or InvalidDataset when the family cannot learn from it."""
    data = suitable_dataset(tenant, name, family["needs"], "This family")
    layout = data.layout if isinstance(data, Builtin) else data["layout"]
    if layout not in family["layouts"]:
        raise InvalidDataset(
            f"This family learns from datasets of layout {joined(family['layouts'], 'or')}; this one is {layout}.",
            field="/dataset",
        )
    return data


def check_init(tenant: str, body: wire.TrainingRequest) -> None:
    """Raises NotFound for a model to start from that is not there."""
    if body.init_from:
        suitable_model(tenant, body.init_from, (), "A start", "/init_from")


def check_fork(body: wire.TrainingRequest, origin: dict[str, Any] | None) -> None:
    """Raises InvalidRequest when the job to fork has ended and no such checkpoint of it is kept."""
    if origin is None:
        return
    kept, images = checkpoints.points(origin["checkpoint"]), body.fork_from.images
    if images not in kept if images is not None else not kept and origin["state"] in jobs.TERMINAL:
        raise InvalidRequest(
            "No checkpoint is kept at this point of the training.",
            field="/fork_from/images" if images is not None else "/fork_from",
            remedy=f"There is one after {joined(list(map(str, kept)), 'or')} images."
            if kept
            else f"Checkpoints stay for {settings().checkpoint_days:g} days after a training has ended.",
        )
