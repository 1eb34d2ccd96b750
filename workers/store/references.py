"""Models named inside a job's request, besides the one that it is about."""

from collections.abc import Callable

from app.core.errors import NotFound
from app.core.store.database import reading
from models.family import Family
from workers import devices
from workers.jobs.job import RunningJob
from workers.store import model_rows as records
from workers.store.models import load_model


def digest_of(job: RunningJob, reference: str, field: str = "model") -> str:
    """The digest of name or name@digest. Raises NotFound naming `field`."""
    try:
        with reading(job.bind) as conn:
            return records.digest_of(conn, job.tenant, reference)
    except NotFound:
        raise NotFound(f"There is no model {reference}.", field=field) from None


def loader(job: RunningJob) -> Callable[[str], Family]:
    """Gives the tenant's model of a reference, ready to serve, each loaded once."""
    loaded: dict[str, Family] = {}

    def load(reference: str) -> Family:
        if reference not in loaded:
            loaded[reference] = load_model(digest_of(job, reference)).to(devices.device())
        return loaded[reference]

    return load
