"""The version that a reference means, cached for a second, so that a call does not wait for the database."""

import time

from anyio.to_thread import run_sync

from app.core.catalog.builtins import BUILTIN_MODELS
from app.core.errors import NotFound
from app.core.jobs import state as jobs
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction
from app.core.store.models import ResolvedModel

CACHE_SECONDS = 1.0
MAX_ENTRIES = 10_000


class ModelResolver:
    """One per app. Errors are not cached: a model is found as soon as it is ready."""

    def __init__(self) -> None:
        self._cache: dict[tuple[str, str], tuple[float, ResolvedModel]] = {}

    async def find(self, tenant: str, reference: str) -> ResolvedModel:
        """Raises NotFound or ModelNotReady."""
        expires, model = self._cache.get((tenant, reference), (0.0, None))
        if model is None or expires < time.monotonic():
            model = await run_sync(self._look_up, tenant, reference)
            if len(self._cache) >= MAX_ENTRIES:
                self._cache.clear()
            self._cache[tenant, reference] = (time.monotonic() + CACHE_SECONDS, model)
        return model

    def forget(self) -> None:
        """Empties the cache, after a model was deleted."""
        self._cache.clear()

    @staticmethod
    def _look_up(tenant: str, reference: str) -> ResolvedModel:
        try:
            with reading() as conn:
                return model_rows.resolve(conn, tenant, reference)
        except NotFound:
            if reference not in BUILTIN_MODELS:
                raise
        with transaction() as conn:  # the first request for a built-in model imports it
            jobs.accept(conn, tenant=tenant, kind="model", spec={"name": reference, "builtin": reference})
        with reading() as conn:
            return model_rows.resolve(conn, tenant, reference)
