"""Assembles the web front: routes, middleware, state and lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

import structlog
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI
from starlette.middleware import Middleware

from app.api.calls.prepare import ModelResolver
from app.api.http import openapi, problems
from app.api.http.auth import Authenticator
from app.api.http.metrics import Metrics
from app.api.http.middleware import Admission, AllowedOrigins, BodyLimit, HeadRequests, RequestLog, TrustedHosts
from app.api.http.rate_limit import Rates
from app.api.http.strict import refuse_unknown_queries
from app.api.http.worker_watch import WorkerWatch
from app.api.jobs import uploads
from app.api.routes import (
    apply_perturbation,
    dataset_images,
    datasets,
    defences,
    derivations,
    docs,
    exports,
    families,
    health,
    imports,
    job_events,
    jobs,
    keys,
    me,
    models,
    operations,
    oracles,
    perturbations,
    quiz,
    reports,
    trainings,
)
from app.core import catalog as catalogs
from app.core import logs
from app.core.calls.client import CallClient
from app.core.catalog import Catalog, cost
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
    apply_perturbation,
    job_events,
    jobs,
    families,
    keys,
    me,
    health,
    docs,
)


def create_app(catalog: Catalog | None = None, calls: CallClient | None = None) -> FastAPI:
    """The application for the settings of the environment. Tests pass a catalog and a stand-in for the workers."""
    options = settings()
    if not structlog.is_configured():
        logs.configure()
    app = FastAPI(
        title="Anamorph",
        version=_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        separate_input_output_schemas=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _set_state(app, options, catalog or catalogs.load(), calls or _calls(options))
    app.user_middleware = _middleware(app, options)
    problems.install(app)
    app.include_router(operations.router(app.state.catalog))
    for module in ROUTERS:
        app.include_router(module.router, dependencies=[Depends(refuse_unknown_queries)])
    app.mount("/docs/assets", docs.assets)
    app.openapi = lambda: openapi.describe(app)
    return app


def _set_state(app: FastAPI, options: Settings, catalog: Catalog, calls: CallClient) -> None:
    """Sets what requests read from `app.state`."""
    shared = options.broker_url.startswith(("redis://", "rediss://"))
    redis_url = options.redis_url if shared else None
    rates = Rates(options.rate_limit, redis_url, options.compute_seconds_per_minute) if options.require_keys else None
    app.state.catalog = catalog
    app.state.calls = calls
    app.state.authenticator = Authenticator(rates)
    app.state.resolver = ModelResolver()
    app.state.rates = cost.Rates()
    app.state.metrics = Metrics(calls)
    app.state.watch = WorkerWatch(calls)
    app.state.sweeper = Sweeper()


def _middleware(app: FastAPI, options: Settings) -> list[Middleware]:
    """The middleware, the outermost first."""
    return [
        Middleware(HeadRequests),
        Middleware(RequestLog, seconds=app.state.metrics.requests),
        Middleware(Admission, seconds=options.call_wait_seconds),
        Middleware(TrustedHosts, hosts=_hosts(options)),
        Middleware(AllowedOrigins, origins=options.allowed_origins),
        Middleware(BodyLimit),
    ]


def _hosts(options: Settings) -> list[str]:
    """The allowed values of Host. Without keys only the names of this machine, unless `allowed_hosts` is set."""
    if options.require_keys or options.allowed_hosts != ["*"]:
        return options.allowed_hosts
    public = urlsplit(options.public_url).hostname
    return ["localhost", "127.0.0.1", "::1", options.host, *([public] if public else [])]


def _calls(options: Settings) -> CallClient:
    return CallClient(
        options.redis_url,
        batch=options.call_batch,
        in_flight=options.calls_in_flight,
        queue_limit=options.call_queue_limit,
        slow_in_flight=options.slow_calls_in_flight,
        wait_seconds=options.call_wait_seconds,
    )


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await run_sync(migrate)
    await run_sync(uploads.forget_stale)
    app.state.sweeper.start()
    await app.state.calls.start()
    app.state.watch.start()
    yield
    await app.state.watch.stop()
    await app.state.calls.stop()
    await app.state.authenticator.close()
    await run_sync(app.state.sweeper.stop)


def _version() -> str:
    try:
        return version("anamorph")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0"
