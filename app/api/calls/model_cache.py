"""Which version a reference means, remembered for a second: a call should not wait for the database each time."""

import time

from anyio.to_thread import run_sync

from app.core.catalog.builtin_models import BUILTIN_MODELS
from app.core.errors import NotFound
from app.core.jobs import state as jobs
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction
from app.core.store.models import Found

REMEMBERED_SECONDS = 1.0
MOST = 10_000


class Resolver:
    """One per app. Errors are not remembered: a model that has just become ready is there at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, Found]] = {}

    async def find(self, tenant: str, reference: str) -> Found:
        """Raises NotFound or ModelNotReady."""
        until, found = self._known.get((tenant, reference), (0.0, None))
        if found is None or until < time.monotonic():
            found = await run_sync(self._look_up, tenant, reference)
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[tenant, reference] = (time.monotonic() + REMEMBERED_SECONDS, found)
        return found

    def forget(self) -> None:
        """A model was deleted here."""
        self._known.clear()

    @staticmethod
    def _look_up(tenant: str, reference: str) -> Found:
        try:
            with reading() as conn:
                return model_rows.resolve(conn, tenant, reference)
        except NotFound:
            if reference not in BUILTIN_MODELS:
                raise
        with transaction() as conn:  # the first to ask for a built-in model has it imported
            jobs.accept(conn, tenant=tenant, kind="model", spec={"name": reference, "builtin": reference})
        with reading() as conn:
            return model_rows.resolve(conn, tenant, reference)
