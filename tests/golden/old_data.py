"""What a service says of the data folder of release 0.1, asked over HTTP; see test_old_data_folder.py."""

import hashlib
import io
import time
from typing import Any

import httpx
import numpy as np
from PIL import Image

SIDE = 8
ENVIRONMENT = {
    "ANAMORPH_DEVICE": "cpu",
    "ANAMORPH_TRAIN_THREADS": "1",
    "ANAMORPH_INFER_THREADS": "1",
    "ANAMORPH_JOB_NICENESS": "0",
    "ANAMORPH_CHECKPOINT_SECONDS": "0.5",
    "ANAMORPH_CHECKPOINT_DAYS": "100000",  # the folder's checkpoints are older than the seven days of the default
}
VARIABLE = {"timings", "eta_seconds", "queue_position"}
ANSWERS = {
    "samples": ("GET", "vae/samples", {"n": 4, "seed": 7}),
    "samples of a mixture": ("GET", "denoiser/samples", {"n": 4, "seed": 7}),
    "denoise": ("POST", "denoiser/denoise", {}),
    "reconstruct": ("POST", "denoiser/reconstruct", {}),
    "reconstruct by vae": ("POST", "vae/reconstruct", {}),
    "encode": ("POST", "vae/encode", {}),
    "anomaly": ("POST", "vae/anomaly", {}),
    "search": ("POST", "vae/search", {"neighbours": 3}),
    "map": ("GET", "vae/map", {"images": 20}),
    "classify": ("POST", "classifier/classify", {}),
    "attack": ("POST", "classifier/attack", {"method": "pgd", "steps": 4, "eps": 0.1, "control": True}),
    "attack on an import": ("POST", "imported/attack", {"method": "square", "queries": 20, "eps": 0.3}),
    "classify by an import": ("POST", "imported/classify", {}),
    "classify under a defence": ("POST", "guarded/classify", {}),
    "detect": ("POST", "guarded/detect", {}),
    "certify": ("POST", "guarded/certify", {"n": 20}),
}
"""Method, model and operation, and parameters."""


def observed(client: httpx.Client) -> dict[str, Any]:
    """Lists, every job with its curve, stored files, and answers of the models."""
    ids = sorted(job["id"] for job in get(client, "/v1/jobs", limit=100)["data"])
    jobs = {job: get(client, f"/v1/jobs/{job}") for job in ids}
    trainings = [job for job in ids if jobs[job]["kind"] == "training"]
    names = sorted(model["name"] for model in get(client, "/v1/models")["data"])
    files = [f"/v1/models/{name}/weights.safetensors" for name in names]
    files += [f"/v1/jobs/{job['id']}/artifacts/{name}" for job in jobs.values() for name in artifacts(job)]
    files += [f"/v1/perturbations/shift/{name}" for name in ("delta.npy", "picture.png", "examples.png")]
    return {
        "jobs": jobs,
        "curves": {job: get(client, f"/v1/jobs/{job}/metrics")["data"] for job in trainings},
        "snapshots": {job: get(client, f"/v1/jobs/{job}/snapshots") for job in trainings},
        "datasets": {name: get(client, f"/v1/datasets/{name}") for name in ("toy", "cleaned")},
        "images": get(client, "/v1/datasets/toy/images", split="validation", count=3),
        "models": {name: get(client, f"/v1/models/{name}") for name in names},
        "perturbations": get(client, "/v1/perturbations")["data"],
        "files": {path: hashlib.sha256(content(client, path)).hexdigest() for path in files},
        "answers": {name: answer(client, *about) for name, about in ANSWERS.items()},
    }


def artifacts(job: dict[str, Any]) -> list[str]:
    return sorted((job.get("result") or {}).get("artifacts", {}))


def resumed(client: httpx.Client, job: str) -> dict[str, Any]:
    """The end of a training that was stopped, now resumed where it waits for that: its weights and its curve."""
    if get(client, f"/v1/jobs/{job}")["status"] == "canceled":
        client.post(f"/v1/jobs/{job}/resume").raise_for_status()
    row = ended(client, job)
    if measurement := row["result"].get("measurement"):  # the metrics come after the model
        ended(client, measurement["job"].rsplit("/", 1)[-1])
        row = ended(client, job)
    weights = content(client, f"/v1/models/{row['result']['model']}/weights.safetensors")
    curve = get(client, f"/v1/jobs/{job}/metrics")["data"]
    return {"weights": hashlib.sha256(weights).hexdigest(), "curve": curve, "metrics": row["result"]["metrics"]}


def reported(client: httpx.Client) -> dict[str, Any]:
    """A new report on a model of the folder."""
    body = {"report": "robustness", "model": "classifier", "dataset": "toy", "seed": 1}
    body["params"] = {"attacks": ["fgsm"], "eps": ["8/255", "64/255"], "images": 9}
    asked = client.post("/v1/reports", json=body)
    assert asked.status_code == 202, asked.text
    result = ended(client, asked.json()["id"])["result"]
    return {"facts": bare(result["facts"]), "tables": bare(result["tables"])}


def ended(client: httpx.Client, job: str, seconds: float = 300) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (row := client.get(f"/v1/jobs/{job}").json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline, row
        time.sleep(0.2)
    return row


def answer(client: httpx.Client, method: str, path: str, params: dict[str, Any]) -> Any:
    content = {"content": png(), "headers": {"Content-Type": "image/png", "Accept": "application/json"}}
    sent = content if method == "POST" else {"headers": {"Accept": "application/json"}}
    found = client.request(method, f"/v1/models/{path}", params=params, **sent)
    assert found.status_code == 200, found.text
    return bare(found.json())


def get(client: httpx.Client, path: str, **params: Any) -> Any:
    found = client.get(path, params=params)
    assert found.status_code == 200, f"{path}: {found.text}"
    return bare(found.json())


def content(client: httpx.Client, path: str) -> bytes:
    found = client.get(path)
    assert found.status_code == 200, f"{path}: {found.text}"
    return found.content


def bare(value: Any) -> Any:
    """Without texts and timings; pictures and codes as digests."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if key not in VARIABLE}
    if isinstance(value, list):
        return [bare(item) for item in value]
    if isinstance(value, str) and " " in value:
        return "text"
    if isinstance(value, str) and len(value) > 100:
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()[:16]}"
    return value


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(1, 1)).save(file, "PNG")
    return file.getvalue()


def picture(label: int, number: int) -> np.ndarray:
    """A noisy bar at a place that its class decides, uint8 (SIDE, SIDE)."""
    pixels = np.random.default_rng([label, number]).integers(0, 60, (SIDE, SIDE), dtype=np.uint8)
    pixels[2 * label : 2 * label + 3, 1:7] += 180
    return pixels
