"""A request to an operation, read and checked without the model: headers, inputs, parameters."""

import random
import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from app.api.calls import inputs, references, responses
from app.api.calls.inputs import Inputs
from app.api.calls.responses import ResponseSpec
from app.core import catalog
from app.core.catalog import Catalog
from app.core.catalog.coerce import coerce
from app.core.catalog.describe import Schema
from app.core.catalog.describe import sent as sent_value
from app.core.errors import InvalidRequest, UnsupportedOperation
from app.core.settings import settings
from app.core.store.keys import Principal
from app.core.store.models import ResolvedModel

SEED_BITS = 31
JOB_IMAGES = 10_000
"""Maximum images of a call that is made a job."""
WAIT = re.compile(r"wait=(\d{1,4})")


@dataclass(frozen=True)
class Preferences:
    """The header Prefer (RFC 7240): `respond-async` makes a call a job, `wait=N` shortens its deadline to N seconds."""

    respond_async: bool = False
    wait: int | None = None

    @classmethod
    def read(cls, header: str | None) -> "Preferences":
        words = [word.strip().lower() for word in (header or "")[:1000].split(",")]
        waits = [int(match[1]) for word in words if (match := WAIT.fullmatch(word))]
        return cls("respond-async" in words, waits[0] if waits else None)

    @property
    def applied(self) -> dict[str, str]:
        """The header that says which of them were honoured."""
        words = ["respond-async"] if self.respond_async else [] if self.wait is None else [f"wait={self.wait}"]
        return {"Preference-Applied": words[0]} if words else {}


@dataclass(frozen=True)
class Task:
    """A request that can be computed now or as a job.

    `params` are complete; `sent_params` are those that the client sent. `random_seed`: the seed was chosen here.
    `weight` is the number of images that the answer has, and costs.
    """

    principal: Principal
    model: ResolvedModel
    operation: str
    params: dict[str, Any]
    inputs: Inputs
    response: ResponseSpec
    weight: int
    sent_params: dict[str, Any]
    random_seed: bool


def require_operation(entries: Catalog, model: ResolvedModel, operation: str) -> None:
    """Raises UnsupportedOperation, naming the operations that the model supports."""
    supported = catalog.operations_of(entries, list(model.capabilities))
    if operation not in supported:
        names = [name for name in supported if "alias_of" not in entries["operations"][name]]
        raise UnsupportedOperation(
            f"{model.name} is a model of family {model.family}, which does not support {operation}.",
            remedy=f"It supports: {', '.join(names)}." if names else None,
            operations=supported,
        )


async def prepare(
    request: Request, operation: str, model: ResolvedModel, principal: Principal, prefer: Preferences
) -> Task:
    """The task of a request. Raises the errors that the client can fix."""
    entries = request.app.state.catalog
    entry = entries["operations"][operation]
    limit = JOB_IMAGES if prefer.respond_async else settings().call_images
    sent = await inputs.read(request, entry["takes"], limit, as_job=prefer.respond_async)
    texts, values = sent_params(request, sent)
    params = complete_params(entries, operation, texts, values)
    if entry.get("picture_param") and params[entry["picture_param"]]:
        entry = entry | {"gives": "images"}
    random_seed = "seed" in params and (params["seed"] is None or (request.method == "GET" and "seed" not in texts))
    if random_seed:
        params["seed"] = random.getrandbits(SEED_BITS)
    count = count_images(entry, sent, params)
    if count > limit:
        as_job = "" if prefer.respond_async else ", or send 'Prefer: respond-async' to make the request a job"
        raise InvalidRequest(
            f"The answer would have {count} images; the maximum is {limit}.", remedy=f"Ask for fewer images{as_job}."
        )
    response = ResponseSpec(
        operation=operation,
        model=model.name,
        digest=model.digest,
        format=responses.pick(entry, request.headers.get("accept"), count > 1 or sent.names is not None),
        listed=sent.several or entry["takes"] == "nothing" or entry["sheet"],
        picture_first=entry["gives"] == "images" and not entry.get("json_first"),
        seed=params.get("seed"),
        names=sent.names,
        lasting=request.method == "GET",
    )
    if entry.get("dataset") or entry.get("report"):
        params |= await references.exact(entry, principal.tenant, model, params)
    return Task(principal, model, operation, params, sent, response, count, texts | values, random_seed)


def sent_params(request: Request, sent: Inputs) -> tuple[dict[str, Any], dict[str, Any]]:
    """(texts, values): the parameters that came as text in the query or a form, and those that came as JSON.

    A query parameter that is repeated is a list. Raises InvalidRequest for one that is in the query and in the body.
    """
    texts: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        texts[name] = (
            [*([texts[name]] if isinstance(texts[name], str) else texts[name]), value] if name in texts else value
        )
    for name in (sent.texts.keys() | sent.params.keys()) & texts.keys():
        raise InvalidRequest(f"{name[:80]} is both in the query and in the body. Send it once.", field=name[:80])
    return texts | sent.texts, sent.params


def complete_params(entries: Catalog, operation: str, texts: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a request, checked and with defaults. Raises InvalidRequest naming each invalid one."""
    schema = params_schema(entries, operation, texts | values)
    properties = schema.get("properties", {})
    read = {
        name: coerce(properties[name], text, schema) if name in properties else text for name, text in texts.items()
    }
    return catalog.complete(schema, read | values)


def params_schema(entries: Catalog, operation: str, values: dict[str, Any]) -> Schema:
    """The schema of an operation's parameters; of an attack's, by its `method`. Raises InvalidRequest."""
    params = entries["operations"][operation]["params"]
    branches = catalog.branches(entries, operation)
    if branches is None:
        return params
    name = params["discriminator"]
    choice = values.get(name, params.get("default"))
    if not isinstance(choice, str) or choice not in branches:
        remedy = catalog.name_hint(choice, branches) if isinstance(choice, str) else None
        what = f"{name} is required" if choice is None else f"Unknown {name} {sent_value(choice)}"
        raise InvalidRequest(f"{what}. Choose one of: {', '.join(sorted(branches))}.", field=name, remedy=remedy)
    return branches[choice]["params"]


def count_images(entry: dict[str, Any], sent: Inputs, params: dict[str, Any]) -> int:
    """How many images the answer will have."""
    count = 1 if entry["takes"] == "nothing" else max(1, sent.rows)
    for value in (params.get(name) for name in entry["multiplies"]):
        count *= len(value) if isinstance(value, list) else value or 1
    return count
