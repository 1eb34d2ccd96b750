"""A request to an operation, read and checked: all that can be said without the model itself."""

import random
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from app.api.calls import formats, parameters
from app.api.calls import inputs as intake
from app.api.calls import references as beside
from app.api.calls.prefer import Preferences
from app.api.calls.responses import Asked
from app.core import catalog
from app.core.catalog import Catalog
from app.core.errors import InvalidRequest, UnsupportedOperation
from app.core.settings import settings
from app.core.store.keys import Principal
from app.core.store.models import Found

SEED_BITS = 31
JOB_IMAGES = 10_000


@dataclass(frozen=True)
class Task:
    """`given` is what the client wrote, before defaults; `picked` says that the seed was chosen here."""

    principal: Principal
    found: Found
    operation: str
    params: dict[str, Any]
    inputs: intake.Inputs
    asked: Asked
    weight: int
    given: dict[str, Any]
    picked: bool


def check_able(entries: Catalog, found: Found, operation: str) -> None:
    able = catalog.operations_of(entries, list(found.capabilities))
    if operation not in able:
        raise UnsupportedOperation(
            f"{found.name} is a model of family {found.family} and cannot {operation}.",
            remedy=f"It can {', '.join(able)}." if able else None,
            operations=able,
        )


async def prepare(request: Request, operation: str, found: Found, principal: Principal, prefer: Preferences) -> Task:
    """Raises what the client can mend."""
    entries = request.app.state.catalog
    entry = entries["operations"][operation]
    most = JOB_IMAGES if prefer.respond_async else settings().call_images
    inputs = await intake.read(request, entry["takes"], most)
    texts, values = parameters.given(request, inputs)
    params = parameters.completed(entries, operation, texts, values)
    if entry.get("picture_param") and params[entry["picture_param"]]:
        entry = entry | {"gives": "images"}
    picked = "seed" in params and (params["seed"] is None or (request.method == "GET" and "seed" not in texts))
    if picked:
        params["seed"] = random.getrandbits(SEED_BITS)
    count = expected(entry, inputs, params)
    if count > most:
        raise InvalidRequest(
            f"{count} images are too many; {most} may come at once.",
            remedy="Ask for fewer."
            if prefer.respond_async
            else "Ask for fewer, or send 'Prefer: respond-async' to make it a job.",
        )
    asked = Asked(
        operation=operation,
        model=found.name,
        digest=found.digest,
        format=formats.pick(entry, request.headers.get("accept"), count > 1 or inputs.names is not None),
        listed=inputs.several or entry["takes"] == "nothing" or entry["sheet"],
        picture_first=entry["gives"] == "images" and not entry.get("json_first"),
        seed=params.get("seed"),
        names=inputs.names,
        lasting=request.method == "GET",
    )
    params |= await beside.found(entry, principal.tenant, found, params)
    return Task(principal, found, operation, params, inputs, asked, count, texts | values, picked)


def expected(entry: dict[str, Any], inputs: intake.Inputs, params: dict[str, Any]) -> int:
    """How many images the answer will have, and costs."""
    count = 1 if entry["takes"] == "nothing" else max(1, inputs.rows)
    for value in (params.get(name) for name in entry["multiplies"]):
        count *= len(value) if isinstance(value, list) else value or 1
    return count
