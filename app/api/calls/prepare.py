"""A request to an operation, read, checked and priced without the model; and the answer of a worker to it."""

import asyncio
import math
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request

from app.api.calls import inputs, references, responses
from app.api.calls.inputs import Inputs
from app.api.calls.responses import ResponseSpec
from app.api.http.auth import submit
from app.core import catalog
from app.core.calls.client import Answer, Call
from app.core.catalog import Catalog, cost
from app.core.catalog.builtins import BUILTIN_MODELS
from app.core.catalog.coerce import coerce
from app.core.catalog.describe import Schema
from app.core.catalog.describe import sent as sent_value
from app.core.errors import AnamorphError, InvalidRequest, NotFound, TooLong, UnsupportedOperation
from app.core.images import PIXEL_NANOSECONDS
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store import models as model_rows
from app.core.store.database import reading, transaction
from app.core.store.keys import Principal
from app.core.store.models import ResolvedModel

FRESH_SECONDS, USABLE_SECONDS = 0.5, 1.0
"""Age of a look-up after which it is repeated, and until which it holds meanwhile: a deletion is seen after that."""
MAX_ENTRIES = 10_000
DOUBT = 8
"""A guess of the seconds that rests on no measurement refuses nothing that is this much too long."""
CALL_NUMBERS = 16_000_000
"""Numbers of images of a dataset that a call measures at most (workers/store/measurement_cache.py)."""
TILES = 2.6
"""Tiles for each area of a model's image, with their overlap."""
SEED_BITS = 31
JOB_IMAGES = 10_000
"""Maximum images of a call that is made a job."""
WAIT = re.compile(r"wait=(\d{1,4})")


@dataclass(frozen=True)
class Preferences:
    """The header Prefer (RFC 7240): `respond-async` makes a call a job, `wait=N` shortens its deadline to N seconds.

    With both, a call that takes at most N seconds is answered, and any other becomes a job.
    """

    respond_async: bool = False
    wait: int | None = None

    @classmethod
    def read(cls, header: str | None) -> "Preferences":
        words = [word.strip().lower() for word in (header or "")[:1000].split(",")]
        waits = [int(match[1]) for word in words if (match := WAIT.fullmatch(word))]
        return cls("respond-async" in words, waits[0] if waits else None)

    @property
    def applied(self) -> dict[str, str]:
        """The header of an answer that was waited for."""
        return {} if self.wait is None else {"Preference-Applied": f"wait={self.wait}"}


@dataclass(frozen=True)
class Task:
    """A request that can be computed now or as a job.

    `params` are complete; `sent_params` are those that the client sent. `random_seed`: the seed was chosen here.
    `weight` is the number of images that the answer has, and costs. `seconds` of compute are predicted for `passes`;
    `measured`: from measurements of this model.
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
    passes: cost.Passes
    seconds: float
    measured: bool

    @property
    def rate_key(self) -> tuple[str, str]:
        return rate_key(self.model, self.operation, self.passes, self.params)

    @property
    def price(self) -> dict[str, float]:
        """For clients."""
        passes = {"forwards": round(self.passes.forwards), "backwards": round(self.passes.backwards)}
        return passes | {"passes": self.passes.total, "seconds": round(self.seconds, 3)}


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
    about = {"inputs": max(1, sent.rows), "tiles": 1} | model.about
    if entry.get("dataset") or entry.get("report"):
        exact, images = await references.exact(entry, principal.tenant, model, params)
        params |= exact
        most = math.inf if prefer.respond_async else CALL_NUMBERS // about["pixels"]
        about["dataset"] = min(about["dataset"] if images is None else images, most)
    if entry["any_size"] and not params.get("resize") and sent.rows:
        area = sent.pixels / sent.rows / about["pixels"]
        about["tiles"] = 1 if area <= 1 else math.ceil(TILES * area)
    passes = cost.of_operation(entries, operation, params, about, count)
    key = rate_key(model, operation, passes, params)
    seconds, measured = request.app.state.rates.predict(key, passes, about["pixels"], about["parameters"])
    seconds += PIXEL_NANOSECONDS * 1e-9 * sent.decode_pixels
    return Task(principal, model, operation, params, sent, response, count, texts | values, random_seed, passes,
                seconds, measured)  # fmt: skip


def rate_key(model: ResolvedModel, operation: str, passes: cost.Passes, params: dict[str, Any]) -> tuple[str, str]:
    """What the seconds of a pass are learned for: forward passes of a model together, all else by operation."""
    apart = passes.backwards or "dataset" in params or "method" in params
    return model.digest, operation if apart else ""


def require_time(task: Task, seconds: float) -> None:
    """Raises TooLong for a request that is predicted to take longer than `seconds`."""
    if task.seconds / (1 if task.measured else DOUBT) > seconds:
        raise TooLong(
            f"The request takes up to {task.passes.total:,} passes through the model, about {task.seconds:,.0f} s; "
            f"the deadline is {seconds:g} s.",
            remedy="Send 'Prefer: respond-async' to make the request a job, or ask for less: fewer steps, searches or "
            "images.",
            price=task.price | {"deadline": seconds},
        )


async def ask(request: Request, task: Task, call: Call) -> Answer:
    """The answer of a worker. Raises its error, or ClientGone once the client has left."""
    state = request.app.state
    try:
        answer = await submit(request, call)
    except AnamorphError as error:
        state.metrics.calls.labels(task.operation, error.code).inc()
        raise
    state.metrics.calls.labels(task.operation, "ok").inc()
    if answer.share == 1.0:
        about, spent = task.model.about, _spent(task, answer)
        seconds = answer.timings.get("compute", 0.0) / 1000
        state.rates.learn(task.rate_key, spent, about["pixels"], about["parameters"], seconds)
    answer.timings["predicted"] = round(task.seconds * 1000, 3)
    return answer


def _spent(task: Task, answer: Answer) -> cost.Passes:
    """The passes of an answer: attacks count them, and often stop before the maximum."""
    items = answer.facts.get("items") or []
    if task.operation != "attack" or not all("queries" in item and "gradients" in item for item in items):
        return task.passes
    spent = cost.Passes(sum(item["queries"] for item in items), sum(item["gradients"] for item in items), 0.0)
    return spent._replace(batches=task.passes.batches * spent.weight / task.passes.weight)


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


class ModelResolver:
    """The version that a reference means, remembered for a second, so that a call does not wait for the database.

    One per app. There is one look-up at a time for each reference; a recent answer holds meanwhile. Errors are not
    remembered: a model is found as soon as it is ready.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, ResolvedModel]] = {}
        self._looking: dict[tuple[str, str], asyncio.Task[ResolvedModel]] = {}
        self._about: dict[str, Mapping[str, int]] = {}

    async def find(self, tenant: str, reference: str) -> ResolvedModel:
        """Raises NotFound or ModelNotReady."""
        key = tenant, reference
        since, model = self._known.get(key, (-math.inf, None))
        age = time.monotonic() - since
        if model is not None and age < FRESH_SECONDS:
            return model
        looking = self._looking.get(key)
        if looking is None:
            looking = self._looking[key] = asyncio.create_task(self._look(key))
            looking.add_done_callback(partial(self._looked, key, time.monotonic()))
        if model is not None and age < USABLE_SECONDS:
            return model
        return await asyncio.shield(looking)

    def forget(self) -> None:
        """Forgets all, after a model was deleted; look-ups under way may have read what was before."""
        self._known.clear()
        self._looking.clear()

    async def _look(self, key: tuple[str, str]) -> ResolvedModel:
        return await run_sync(self._look_up, *key)

    def _looked(self, key: tuple[str, str], since: float, task: asyncio.Task[ResolvedModel]) -> None:
        error = task.cancelled() or task.exception()
        if self._looking.get(key) is not task:  # forgotten meanwhile
            return
        del self._looking[key]
        if error:
            self._known.pop(key, None)
            return
        if len(self._known) >= MAX_ENTRIES:
            self._known.clear()
        self._known[key] = since, task.result()

    def _look_up(self, tenant: str, reference: str) -> ResolvedModel:
        try:
            return self._resolve(tenant, reference)
        except NotFound:
            if reference not in BUILTIN_MODELS:
                raise
        with transaction() as conn:  # the first request for a built-in model imports it
            jobs.accept(conn, tenant=tenant, kind="model", spec={"name": reference, "builtin": reference})
        return self._resolve(tenant, reference)

    def _resolve(self, tenant: str, reference: str) -> ResolvedModel:
        with reading() as conn:
            model = model_rows.resolve(conn, tenant, reference)
            about = self._about.get(model.digest)
            if about is None:
                card = model_rows.get(conn, tenant, model.exact)["card"]
                about = model_rows.about(card) | dict.fromkeys(model.capabilities, 1)
        if len(self._about) >= MAX_ENTRIES:
            self._about.clear()
        self._about[model.digest] = about
        return model._replace(about=about)
