"""Calls and answers as bytes, between the web front and the inference workers.

A micro-batch is one Celery task whose only argument is msgpack; answers come back as msgpack on the list that the
micro-batch names. Image bytes are never converted to text here.
"""

import base64
import json
import math
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from app.core.errors import AnamorphError, from_problem
from app.core.images import IN_PROCESS_PIXELS

QUEUE = "infer"
GONE = "calls:gone"
"""Channel of the broker on which a front names the calls that nobody waits for any more (`pack_gone`)."""
LIVE, LIVE_SECONDS = "lane:", 15
"""Prefix of the keys by which inference workers say that they live, and how long such a key lasts."""
SLICE_SECONDS = 0.25
"""A call predicted to compute longer than this is slow: it travels alone, and cheaper calls run in between."""
TASK = "workers.main.run_calls"
OPTIONS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


@dataclass(slots=True)
class Call:
    """One request to a model (or to a dataset, for `dataset_images`), named by digest.

    `deadline` is in seconds of this process's monotonic clock; the seconds that are left then travel, so that the
    clocks of machines need not agree. `weight`: number of images of the answer. `tenant`: digest of the tenant, for
    fairness only. `price`: predicted seconds of compute. `decode_pixels`: cost of decoding (app/core/images.py).
    """

    model: str
    operation: str
    params: dict[str, Any]
    images: list[bytes] | None = None
    latents: bytes | None = None  # npy, float32 (n, d)
    encoding: str = "png"  # of the images of the answer: png, webp, npy (one array of all), none
    grid: bool = False
    deadline: float = math.inf
    weight: int = 1
    tenant: str = ""
    price: float = 0.0
    decode_pixels: int = 0

    @property
    def slow(self) -> bool:
        return self.price > SLICE_SECONDS or self.decode_pixels > IN_PROCESS_PIXELS


@dataclass(slots=True)
class Answer:
    """The answer to a call. `facts["items"]` has one dict per image, `extra` further pictures by name, one per image.

    `sheets` are pictures of the whole answer; their layout is in the facts under the same name.
    `share`: of the compute in `timings`, which is that of all calls computed together, the part of this one.
    """

    images: list[bytes] = field(default_factory=list)
    latents: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # milliseconds by stage
    extra: dict[str, list[bytes]] = field(default_factory=dict)
    sheets: dict[str, bytes] = field(default_factory=dict)  # PNG
    share: float = 1.0


def pack_calls(reply_to: str, calls: Iterable[tuple[int, Call]]) -> bytes:
    return msgpack.packb({"reply_to": reply_to, "calls": [_entry(number, call) for number, call in calls]})


def pack_gone(reply_to: str, numbers: Iterable[int]) -> bytes:
    """For the channel GONE: calls of the front that listens on `reply_to`, which a worker drops or stops."""
    return msgpack.packb({"reply_to": reply_to, "ids": list(numbers)})


def unpack_live(values: Iterable[tuple[bytes, bytes | None]]) -> dict[str, dict[str, Any]]:
    """What live inference workers say of themselves, by their id: queues, models, and seconds `busy` and `late`."""
    return {key.decode().removeprefix(LIVE): msgpack.unpackb(value) for key, value in values if value}


def unpack_reply(reply: bytes) -> Iterable[tuple[int, Answer | AnamorphError | None]]:
    """The answers of one reply; a worker may answer a micro-batch in several. None: the answer takes longer."""
    for entry in msgpack.unpackb(reply):
        if entry.get("later"):
            yield entry["id"], None
        else:
            problem = entry.get("problem")
            yield entry["id"], from_problem(problem) if problem else Answer(**entry["answer"])


def task_message(payload: bytes) -> str:
    """The message that `celery.send_task` would put on the queue, 30 times cheaper (Celery protocol 2, kombu envelope).

    Only the Redis transport has this envelope; a test compares it with the messages of Celery.
    """
    ident = str(uuid.uuid4())
    body = msgpack.packb([[payload], {}, OPTIONS])
    message = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary",
        "content-type": "application/x-msgpack",
        "headers": {
            "lang": "py",
            "task": TASK,
            "id": ident,
            "root_id": ident,
            "parent_id": None,
            "group": None,
            "argsrepr": "",
            "kwargsrepr": "",
            "origin": "app.core.calls.client",
            "ignore_result": True,
            "retries": 0,
            "timelimit": [None, None],
            "eta": None,
            "expires": None,
        },
        "properties": {
            "correlation_id": ident,
            "reply_to": "",
            "delivery_mode": 1,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": ident,
        },
    }
    return json.dumps(message)


def pack_inputs(images: list[bytes] | None, latents: bytes | None, names: list[str] | None = None) -> bytes:
    """The inputs of a call that is a job, as the blob that its worker reads. `names`: of the files of a zip."""
    return msgpack.packb({"images": images, "latents": latents} | ({"names": names} if names else {}))


def unpack_inputs(blob: bytes) -> tuple[list[bytes] | None, bytes | None, list[str] | None]:
    inputs = msgpack.unpackb(blob)
    return inputs["images"], inputs["latents"], inputs.get("names")


def _entry(number: int, call: Call) -> dict[str, Any]:
    return {
        "id": number,
        "model": call.model,
        "operation": call.operation,
        "params": call.params,
        "images": call.images,
        "latents": call.latents,
        "encoding": call.encoding,
        "grid": call.grid,
        "tenant": call.tenant,
        "seconds_left": call.deadline - time.monotonic(),
        "price": call.price,
        "slow": call.slow,
    }
