"""The web front, put together: the only place where routes, middleware, state and life cycle meet."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

import structlog
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.types import Scope

from app.api.calls.model_cache import Resolver
from app.api.http import openapi, problems
from app.api.http import unknown_queries as queries
from app.api.http.auth import Doorman
from app.api.http.metrics import Telemetry
from app.api.http.middleware import BodyLimit, Heads, KnownHosts, Observed
from app.api.http.rate_limit import Rates
from app.api.http.worker_watch import Watch
from app.api.jobs import uploads
from app.api.routes import apply_perturbation as perturbing
from app.api.routes import (
    dataset_images,
    datasets,
    defences,
    derivations,
    docs,
    exports,
    families,
    health,
    imports,
    jobs,
    keys,
    models,
    operations,
    oracles,
    perturbations,
    quiz,
    reports,
    trainings,
)
from app.api.routes import job_events as watching
from app.core import catalog as catalogs
from app.core import logs
from app.core.calls.client import CallClient
from app.core.catalog import Catalog
from app.core.jobs.sweeper import Sweeper
from app.core.settings import Settings, settings
from app.core.store.database import migrate

ROUTERS = (
    models,
    defences,
    oracles,
    quiz,
    exports,
    imports,
    dataset_images,
    datasets,
    derivations,
    trainings,
    reports,
    perturbations,
    perturbing,
    watching,
    jobs,
    families,
    keys,
    health,
    docs,
)


def create_app(catalog: Catalog | None = None, calls: CallClient | None = None) -> FastAPI:
    """The application for the settings of the environment; tests give a catalog and a stand-in for the lane."""
    options = settings()
    if not structlog.is_configured():
        logs.configure()
    app = FastAPI(
        title="Anamorph",
        version=_version(),
        lifespan=_life,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        separate_input_output_schemas=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _furnish(app, options, catalog or catalogs.load(), calls or _calls(options))
    app.user_middleware = _middleware(app, options)
    problems.install(app)
    app.include_router(operations.router(app.state.catalog))
    for module in ROUTERS:
        app.include_router(module.router, dependencies=[Depends(queries.known)])
    app.mount("/docs/assets", docs.assets)
    app.openapi = lambda: openapi.describe(app)
    return app


def _furnish(app: FastAPI, options: Settings, catalog: Catalog, calls: CallClient) -> None:
    """What requests find in `app.state`."""
    shared = options.broker_url.startswith(("redis://", "rediss://"))
    rates = Rates(options.rate_limit, options.redis_url if shared else None) if options.require_keys else None
    app.state.catalog = catalog
    app.state.calls = calls
    app.state.doorman = Doorman(rates)
    app.state.resolver = Resolver()
    app.state.telemetry = Telemetry(calls)
    app.state.watch = Watch(calls)
    app.state.sweeper = Sweeper()


def _middleware(app: FastAPI, options: Settings) -> list[Middleware]:
    """From the outside in."""
    return [
        Middleware(Heads),
        Middleware(Observed, observe=app.state.telemetry.observe),
        Middleware(KnownHosts, hosts=_hosts(options)),
        Middleware(BodyLimit, largest=_largest_body),
    ]


def _hosts(options: Settings) -> list[str]:
    """Without keys the service is for this machine alone, and answers to its names alone unless told otherwise."""
    if options.require_keys or options.allowed_hosts != ["*"]:
        return options.allowed_hosts
    public = urlsplit(options.public_url).hostname
    return ["localhost", "127.0.0.1", "::1", options.host, *([public] if public else [])]


def _largest_body(scope: Scope) -> int:
    path, method = scope["path"], scope["method"]
    if method == "POST" and path == "/v1/datasets":
        return settings().max_body_bytes
    if method == "PUT" and path.startswith("/v1/models/"):
        return settings().max_model_bytes + imports.CARD_BYTES + (1 << 16)
    return settings().max_json_bytes


def _calls(options: Settings) -> CallClient:
    return CallClient(
        options.redis_url,
        batch=options.call_batch,
        in_flight=options.calls_in_flight,
        queue_limit=options.call_queue_limit,
    )


@asynccontextmanager
async def _life(app: FastAPI) -> AsyncIterator[None]:
    await run_sync(migrate)
    await run_sync(uploads.forget_stale)
    app.state.sweeper.start()
    await app.state.calls.start()
    app.state.watch.start()
    yield
    await app.state.watch.stop()
    await app.state.calls.stop()
    await app.state.doorman.close()
    await run_sync(app.state.sweeper.stop)


def _version() -> str:
    try:
        return version("anamorph")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0"
