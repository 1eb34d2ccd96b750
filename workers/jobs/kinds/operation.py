"""The job kind "operation": a call that is too long or too large to wait for; its answer is files."""

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from app.core.calls.messages import unpack_inputs
from app.core.errors import InvalidRequest, TooLarge
from app.core.settings import settings
from app.core.store import blobs
from models import deadline
from models.family import Family
from models.operations.core.base import Result as Output
from models.operations.core.base import Rows
from workers.inference.batching import LoadedModel, compute
from workers.inference.host import host
from workers.inference.tensors import encode_answers, operation_for, read_inputs, read_params, to_tensors
from workers.jobs.job import Result, RunningJob
from workers.store.measurement_cache import MAX_JOB_NUMBERS, attach_inputs

MAX_FLOATS = 1 << 28
"""Most numbers in all images of a request: one GiB of float32."""
TILED = 4
"""Memory of overlapping tiles and their outputs, as a multiple of the image's own."""
BATCH = 64
ITEMS = 100
"""Most items in the facts of the job's result; facts.json has all."""
EPOCH = (1980, 1, 1, 0, 0, 0)


def run_operation(job: RunningJob) -> Result:
    """Runs the call in `spec` (inputs in the blob `upload`), in batches between which the job can be stopped."""
    spec, loaded = job.spec, host().models.get(job.spec["model"])
    operation = operation_for(loaded, spec["operation"])
    params = read_params(operation.Params, spec["params"])
    attach_inputs(operation, loaded, params, MAX_JOB_NUMBERS, job.stop_if_asked)
    images, latents, names = read_upload(spec.get("upload"))
    check_size(loaded.model, images)
    most = MAX_FLOATS // TILED // loaded.model.data.pixels
    with deadline.checking(job.stop_if_asked):
        inputs = read_inputs(loaded.model, operation, params, images, latents, most, settings().job_pixels)
    (inputs,) = to_tensors([inputs])
    rows = operation.rows(loaded.model, inputs, params)
    parts = []
    for part in slices(rows):
        job.stop_if_asked()
        with deadline.checking(job.stop_if_asked):
            parts += compute(loaded, operation, params, [part])
        job.progress(sum(map(count, parts)), count(rows))
    outputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    answer = operation.answer(loaded.model, rows, outputs, params)
    return Result(store(job, loaded, answer, count(rows), names))


def read_upload(key: str | None) -> tuple[list[bytes] | None, bytes | None, list[str] | None]:
    try:
        return unpack_inputs(blobs.get(key)) if key else (None, None, None)
    except FileNotFoundError:
        raise InvalidRequest("The inputs of this job are gone.", remedy="Send the request again.") from None


def check_size(model: Family, images: list[bytes] | None) -> None:
    """Raises TooLarge if the images would take more memory than a worker should hold."""
    most = MAX_FLOATS // model.data.pixels
    if images and len(images) > most:
        raise TooLarge(
            f"A job takes at most {most} images of this model's size; you sent {len(images)} images.",
            remedy="Split them into several requests.",
        )


def slices(rows: Rows) -> Iterator[Rows]:
    for start in range(0, count(rows), BATCH):
        yield {name: tensor[start : start + BATCH] for name, tensor in rows.items()}


def count(rows: Rows) -> int:
    return len(next(iter(rows.values())))


def store(
    job: RunningJob, loaded: LoadedModel, output: Output, total: int, names: list[str] | None = None
) -> dict[str, Any]:
    """Writes the files of an answer; returns the result of the job, which lists them and the first facts."""
    spec = job.spec
    stored = job.store_artifacts(files(output, spec["encoding"], spec.get("grid", False), names))
    facts = dict(output.facts)
    if "items" in facts:
        facts["items"] = facts["items"][:ITEMS]
    about = {"model": spec.get("name"), "version": loaded.digest, "operation": spec["operation"]}
    return about | {"params": spec["params"], "count": total, "facts": facts, **stored}


def files(output: Output, encoding: str, grid: bool, names: list[str] | None = None) -> dict[str, bytes]:
    """facts.json; latents.npy; images.npy, one images.png or images.webp, or images.zip with one file per picture."""
    (answer,) = encode_answers([(output, encoding, grid)])
    contents = {"facts.json": json.dumps(answer["facts"]).encode()}
    contents |= {f"{name}.png": picture for name, picture in answer["sheets"].items()}
    if answer["latents"] is not None:
        contents["latents.npy"] = answer["latents"]
    if len(answer["images"]) == 1 and not answer["extra"] and not names:
        contents[f"images.{encoding}"] = answer["images"][0]
    elif answer["images"]:
        contents["images.zip"] = pack(answer, encoding, names)
    return contents


def pack(answer: dict[str, Any], encoding: str, names: list[str] | None = None) -> bytes:
    """A zip of 0000.png, 0001.png ... (or `names`) and the extra pictures of each, such as 0000-perturbation.png."""
    stems = dict(enumerate(names if names and len(names) == len(answer["images"]) else ()))
    groups = {"": answer["images"]} | {f"-{name}": pictures for name, pictures in answer["extra"].items()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for ending, pictures in groups.items():
            for index, picture in enumerate(pictures):
                stem = stems.get(index, f"{index:04}")
                archive.writestr(zipfile.ZipInfo(f"{stem}{ending}.{encoding}", EPOCH), picture)
    return out.getvalue()
