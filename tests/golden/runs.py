"""Replays recorded scripts of trainings, calls and jobs in this process, on one tiny dataset for each layout.

A script is a list of steps as plain JSON: {"train": {...}}, {"call": {...}} or {"job": {...}}. Later steps name the
models, datasets and jobs of earlier ones.
"""

import hashlib
import io
import json
import os
import re
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load

from app.core.jobs import events
from app.core.store import blobs
from app.core.store.database import clock, encode_json, new_id, reading, transaction
from app.core.store.tables import datasets
from tests.models.data import dataset
from tests.workers.trainings import TENANT, accept, attempt, finish, measured, put_dataset, row_of
from workers.inference.host import Host
from workers.jobs.kinds import runner_of

SIDE = 12
LAYOUTS = ("labelled", "attributes", "segmentation", "detection", "paired", "unpaired")
VARIABLE = {"version", "model", "artifacts", "digest", "dataset_digest", "bytes", "torch", "seconds", "report"}
"""Members of results that name versions or files, or differ from run to run."""


def fingerprint() -> dict[str, str]:
    """What the bits of floating-point results depend on."""
    with open("/proc/cpuinfo") as file:
        found = re.search(r"model name\s*:\s*(.*)", file.read())
    cpu = found[1] if found else os.uname().machine
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu": cpu,
        "kernels": torch.backends.cpu.get_cpu_capability(),
    }


class Runner:
    """Runs the steps of one script, in an empty data folder."""

    def __init__(self) -> None:
        self.host = Host(1 << 30, torch.device("cpu"))
        self.versions: dict[str, str] = {}
        self.fitted: dict[str, str] = {}
        for layout in LAYOUTS:
            store_dataset(layout)

    def run(self, step: dict[str, Any]) -> Any:
        """The result of one step, as plain JSON."""
        ((kind, spec),) = step.items()
        return json.loads(json.dumps(getattr(self, kind)(**json.loads(json.dumps(spec)))))

    def train(self, name: str, weights_of: bool = True, **spec: Any) -> dict[str, Any]:
        """A training: digests of the published weights, the curves and the final metrics."""
        job, result = self._finished("training", {"name": name, **spec})
        result = measured(row_of(job))["result"]
        self.versions[name] = result["version"]
        data = blobs.get(f"models/{result['version']}/weights.safetensors")
        tensors = {key: of_tensor(tensor) for key, tensor in sorted(load(data).items())}
        with reading() as conn:
            curve = {str(point["images"]): point["values"] for point in events.metrics(conn, job)}
        summed = hashlib.sha256(json.dumps(tensors).encode()).hexdigest()
        shown = {"tensors": tensors} if weights_of else {}
        values = rounded({"curve": curve, "metrics": result["metrics"]})
        return {"weights": f"{len(tensors)} sha256:{summed}", **shown, **values}

    def call(self, model: str, operation: str, params: dict[str, Any], inputs: Any = None, **more: Any) -> Any:
        """The answer of a call, or the code of its problem. `inputs`: a count of images, or a shape of latents."""
        known = {name: self.fitted[value[1:]] for name, value in params.items() if str(value).startswith("#")}
        call = {
            "model": self.versions[model],
            "operation": operation,
            "params": params | known,
            "encoding": "npy",
            **more,
        }
        if isinstance(inputs, int):
            call["images"] = [png(seed) for seed in range(inputs)]
        elif inputs:
            call["latents"] = npy(np.random.default_rng(0).normal(size=inputs).astype(np.float32))
        (outcome,) = self.host.execute([call])
        if "problem" in outcome:
            return {"problem": outcome["problem"]["code"]}
        return short({name: value for name, value in outcome["answer"].items() if name != "timings"})

    def job(self, kind: str, label: str, **spec: Any) -> Any:
        """The result of any other job, less what names versions; a model that it makes is known by its name."""
        if str(spec.get("model", "")).startswith("@"):
            spec["model"] = self.versions[spec["model"][1:]]
        result = self._finished(kind, spec)[1]
        self.fitted[label] = result.get("artifacts", {}).get("fitted.safetensors", "")
        if "version" in result and "name" in spec:
            self.versions[spec["name"]] = result["version"]
        files = {name: blobs.get(key) for name, key in result.get("artifacts", {}).items()}
        arrays = {name: of_bytes(data) for name, data in files.items() if name.endswith((".npy", ".npz"))}
        return {"files": sorted(files), "arrays": arrays, "result": short(result)}

    def _finished(self, kind: str, spec: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        job = attempt(accept(**{"family": None, "dataset": "labelled", "seed": 1, **spec}, kind=kind))
        return job.id, finish(job, runner_of(kind)(job))["result"]


def store_dataset(layout: str) -> None:
    """24 training images of SIDE x SIDE grey pixels and 6 to validate."""
    spec, train, validation = dataset(layout, (1, SIDE, SIDE), 24)
    facts = {"layout": layout, "height": SIDE, "width": SIDE, "channels": 1, "classes": spec.classes}
    facts |= {"columns": spec.columns, "ages": spec.ages, "identities": spec.identities}
    sides = {"train": train, "validation": validation}
    files = {f"{side}/{name}.npy": npy(array) for side in sides for name, array in sides[side].columns.items()}
    digest = put_dataset(encode_json(facts).encode(), files)
    row = {"id": new_id(), "tenant": TENANT, "name": layout, "layout": layout, "digest": digest, "facts": facts}
    row |= {"source": "upload", "bytes": 1, "licence": "CC0", "attribution": "nobody", "created_at": clock()}
    with transaction() as conn:
        conn.execute(datasets.insert().values(**row))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def short(value: Any) -> Any:
    """Bytes as digests; without texts, which may change."""
    if isinstance(value, bytes):
        return of_bytes(value)
    if isinstance(value, dict):
        return {key: short(item) for key, item in value.items() if key not in VARIABLE}
    if isinstance(value, list | tuple):
        return [short(item) for item in value]
    return "text" if isinstance(value, str) and " " in value else value


def rounded(value: Any) -> Any:
    """Six digits of every number."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def of_bytes(data: bytes) -> str:
    """What a file is, and its digest."""
    if data.startswith(b"\x93NUMPY"):
        return of_array(np.load(io.BytesIO(data)))
    return f"{data[:4].strip(bytes([0x89])).decode('latin1')} sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def of_tensor(tensor: torch.Tensor) -> str:
    return of_array(tensor.numpy())


def of_array(array: np.ndarray) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return f"{array.dtype}{list(array.shape)} sha256:{digest[:16]}"
