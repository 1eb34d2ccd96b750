"""The job kind "operation": a call too long or too large to wait for. Its answer is files."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from sqlalchemy import Connection

from app.core.calls.messages import unpack_inputs
from app.core.errors import InvalidRequest, TooLarge
from app.core.store import blobs
from models import deadline
from models.family import Family
from models.operations.core.base import Result as Found
from models.operations.core.base import Rows
from workers.inference.batching import LoadedModel, compute
from workers.inference.host import host
from workers.inference.requests import operation_for, read_inputs, read_params, to_tensors
from workers.inference.responses import encode_answers
from workers.jobs.job import Result, RunningJob
from workers.store.measurement_cache import KEPT_NUMBERS, attach_inputs

MAX_FLOATS = 1 << 28
"""Numbers in all images of a request: a gibibyte."""
TILED = 4
"""Overlapping tiles of an image and what is made of them take so many times its memory."""
BATCH = 64
ITEMS = 100
"""Rows of facts in the job's result; the file has all."""
EPOCH = (1980, 1, 1, 0, 0, 0)


def run_operation(job: RunningJob) -> Result:
    """Does what `spec` asks (a call, with its inputs in the blob `upload`), in batches between which it can stop."""
    spec, loaded = job.spec, host().models.get(job.spec["model"])
    operation = operation_for(loaded, spec["operation"])
    params = read_params(operation.Params, spec["params"])
    attach_inputs(operation, loaded, params, KEPT_NUMBERS, job.stop_if_asked)
    images, latents, names = read_upload(spec.get("upload"))
    check_size(loaded.model, images)
    most = MAX_FLOATS // TILED // loaded.model.data.pixels
    (inputs,) = to_tensors([read_inputs(loaded.model, operation, params, images, latents, most)])
    rows = operation.rows(loaded.model, inputs, params)
    parts = []
    for part in slices(rows):
        job.stop_if_asked()
        with deadline.checking(job.stop_if_asked):
            parts += compute(loaded, operation, params, [part])
        job.progress(sum(map(count, parts)), count(rows))
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    answer = operation.result(loaded.model, rows, found, params)
    return Result(store(job, loaded, answer, count(rows), names), lambda conn: forget(conn, spec.get("upload")))


def read_upload(key: str | None) -> tuple[list[bytes] | None, bytes | None, list[str] | None]:
    try:
        return unpack_inputs(blobs.get(key)) if key else (None, None, None)
    except FileNotFoundError:
        raise InvalidRequest("The inputs of this job are gone.", remedy="Send the request again.") from None


def check_size(model: Family, images: list[bytes] | None) -> None:
    """Raises TooLarge for more than a worker should hold in memory."""
    most = MAX_FLOATS // model.data.pixels
    if images and len(images) > most:
        raise TooLarge(
            f"{len(images)} images are too many for one job; {most} of this model's size may come at once.",
            remedy="Send them in several requests.",
        )


def slices(rows: Rows) -> Iterator[Rows]:
    for start in range(0, count(rows), BATCH):
        yield {name: tensor[start : start + BATCH] for name, tensor in rows.items()}


def count(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def store(
    job: RunningJob, loaded: LoadedModel, found: Found, total: int, names: list[str] | None = None
) -> dict[str, Any]:
    """Writes the files of an answer; gives the job's result, which names them and begins with the facts."""
    spec = job.spec
    keys = {}
    for name, data in files(found, spec["encoding"], spec.get("grid", False), names).items():
        keys[name] = job.artifact_key(name)
        blobs.put(keys[name], data, create_only=False)
    facts = dict(found.facts)
    if "items" in facts:
        facts["items"] = facts["items"][:ITEMS]
    about = {"model": spec.get("name"), "version": loaded.digest, "operation": spec["operation"]}
    return about | {"params": spec["params"], "count": total, "facts": facts, "artifacts": keys}


def files(found: Found, encoding: str, grid: bool, names: list[str] | None = None) -> dict[str, bytes]:
    """facts.json; latents.npy; images.npy, one images.png or images.webp, or images.zip with one file per picture."""
    (answer,) = encode_answers([(found, encoding, grid)])
    written = {"facts.json": json.dumps(answer["facts"]).encode()}
    written |= {f"{name}.png": picture for name, picture in answer["sheets"].items()}
    if answer["latents"] is not None:
        written["latents.npy"] = answer["latents"]
    if len(answer["images"]) == 1 and not answer["extra"] and not names:
        written[f"images.{encoding}"] = answer["images"][0]
    elif answer["images"]:
        written["images.zip"] = pack(answer, encoding, names)
    return written


def pack(answer: dict[str, Any], encoding: str, names: list[str] | None = None) -> bytes:
    """A zip of 0000.png, 0001.png ..., or by `names`, and what comes with each, such as 0000-perturbation.png."""
    stems = dict(enumerate(names if names and len(names) == len(answer["images"]) else ()))
    groups = {"": answer["images"]} | {f"-{name}": pictures for name, pictures in answer["extra"].items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for ending, pictures in groups.items():
            for index, picture in enumerate(pictures):
                stem = stems.get(index, f"{index:04}")
                archive.writestr(zipfile.ZipInfo(f"{stem}{ending}.{encoding}", EPOCH), picture)
    return out.getvalue()


def forget(conn: Connection, upload: str | None) -> None:
    """The inputs are needed no longer once the answer stands."""
    if upload:
        blobs.delete_prefix(upload)
