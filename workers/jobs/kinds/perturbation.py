"""The job kind "perturbation": fits one change of pixels that fools a classifier on most images, and measures it."""

import hashlib
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from app.core.errors import InvalidRequest
from app.core.jobs.checkpoints import CHECKPOINT
from app.core.settings import settings
from app.core.store import blobs, integrity
from app.core.store import perturbations as rows
from models.attacks.core.access import WhiteBox
from models.attacks.core.universal import Fooling, Universal, UniversalConfig, apply, measure, permuted, random_signs
from models.capabilities import Classifies
from models.data import Columns
from models.evaluation.confidence import wilson
from models.family import Family
from models.operations.core.attack_facts import perturbation
from models.reports.core.base import check_shape
from models.seeds import derive
from models.types import DataError, DataSpec
from workers import codecs, devices
from workers.jobs.job import Result, RunningJob, Stopped
from workers.store import model_rows
from workers.store.models import load_model
from workers.store.training_data import Source, open_source

EXAMPLES = 8
CURVE_POINTS = 200


def run_perturbation(job: RunningJob) -> Result:
    """Fits the perturbation of the spec {"model", "dataset", "config", "seed", "name"}, from the last checkpoint on."""
    devices.use_threads(settings().train_threads)
    checkpoint, spec = job.last_checkpoint or {}, job.spec
    digest = model_rows.digest(job, spec["model"])
    model = load_model(digest).to(devices.device())
    source = open_source(job.bind, job.tenant, spec["dataset"], checkpoint.get("dataset"), job.stop_if_asked)
    check(model, source)
    config, seed = read_config(model, spec["config"]), spec.get("seed") or 0
    access = WhiteBox(model, lambda net, x: net.logits(x), shape=model.data.shape)
    fit = Universal(access, sampled(source.data.train, config.images, seed), config, seed)
    fit.raw = fit.raw.to(model.device)
    if checkpoint:
        delta = torch.from_numpy(codecs.decode_npy(blobs.get(checkpoint["delta"])))
        fit.restore(delta, checkpoint["step"], checkpoint["fooled"])
    follow(job, fit, source.data.digest)
    facts, pictures = measure_result(job, model, access, fit, source, digest)
    size = store(facts, fit.delta, pictures)
    name = spec.get("name") or job.id
    also = partial(rows.register, tenant=job.tenant, name=name, facts=facts, size=size, job_id=job.id)
    return Result({"perturbation": name, **facts}, also)


def check(model: Family, source: Source) -> None:
    """Raises if the model is not a classifier or the dataset does not fit it."""
    if not isinstance(model, Classifies):
        raise InvalidRequest(
            f"A perturbation needs a classifier; this model is of family {model.name}.",
            field="model",
            remedy="Choose a model that classifies.",
        )
    data = DataSpec.from_facts(source.data.facts)
    if "images" not in data.columns.get("train", {}) or "images" not in data.columns.get("validation", {}):
        raise DataError("the dataset needs training and validation images", "dataset")
    check_shape(model, data)


def read_config(model: Family, values: dict[str, Any]) -> UniversalConfig:
    """The config with the target as a class index. Raises InputError for an unknown class."""
    target = values.get("target")
    return UniversalConfig(**values | {"target": None if target is None else model.data.class_index(target)})


def sampled(columns: dict[str, np.ndarray], count: int, seed: int) -> Columns:
    """`count` random images: the stored order is often that of the classes."""
    total = len(columns["images"])
    order = np.random.Generator(np.random.Philox(derive(seed, "drawn"))).permutation(total)[:count]
    return Columns({"images": columns["images"][np.sort(order)]})


def follow(job: RunningJob, fit: Universal, dataset: str) -> None:
    """Runs the remaining steps. Saves a checkpoint and raises Stopped when the job should stop."""
    started = saved = time.monotonic()
    first = fit.step
    for step in fit.run():
        now = time.monotonic()
        eta = (step.total - step.step) * (now - started) / max(step.step - first, 1)
        job.progress(step.step, step.total, round(eta, 1))
        if step.step % max(1, step.total // CURVE_POINTS) == 0:
            job.metrics(step.step, {"fooling": step.fooling})
        stopping = job.stopping
        if stopping or now - saved >= settings().checkpoint_seconds:
            save(job, fit, dataset)
            saved = now
        if stopping:
            raise Stopped(stopping)


def save(job: RunningJob, fit: Universal, dataset: str) -> None:
    raw, step, fooled = fit.state()
    key = job.artifact_key(f"{CHECKPOINT}{step}.npy")
    blobs.put(key, codecs.encode_npy(raw), create_only=False)
    before = (job.last_checkpoint or {}).get("delta")
    job.checkpoint({"delta": key, "step": step, "fooled": fooled, "dataset": dataset})
    if before and before != key:
        blobs.delete_prefix(before)


def measure_result(
    job: RunningJob, model: Family, access: WhiteBox, fit: Universal, source: Source, digest: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts, with 95 % intervals of the fooling rates and two controls, and the pictures."""
    config, delta = fit.config, fit.delta
    job.stop_if_asked()
    trained = measure(access, fit.train, {"delta": delta}, config.images)["delta"]
    job.stop_if_asked()
    held_out = Columns({name: source.data.validation[name] for name in ("images", "labels")
                        if name in source.data.validation})  # fmt: skip
    deltas = {
        "delta": delta,
        "random_signs": random_signs(delta, derive(fit.seed, "control") % 2**62),
        "permuted": permuted(delta, derive(fit.seed, "control") % 2**62),
        "none": torch.zeros_like(delta),
    }
    same = source.data.facts.get("classes") == list(model.data.classes or ()) or not model.data.classes
    rates = measure(access, held_out if same else Columns({"images": held_out.columns["images"]}), deltas,
                    config.held_out)  # fmt: skip
    own, names = rates["delta"], model.data.classes
    top = int(own.answers.argmax())
    facts = {
        "model": job.spec["model"].partition("@")[0],
        "version": digest,
        "dataset": job.spec["dataset"],
        "dataset_digest": source.data.digest,
        "config": config.model_dump(mode="json"),
        "seed": fit.seed,
        "method": config.method,
        "norm": config.norm,
        "eps": config.radius,
        "linf_255": round(float(delta.abs().max()) * 255),
        "l2": float(delta.norm()),
        "shape": list(delta.shape),
        "fooling": {"train": rated(trained), "held_out": rated(own)},
        "controls": {name: rated(rates[name]) for name in ("random_signs", "permuted")},
        "dominant": {"label": names[top] if names else str(top), "share": int(own.answers[top]) / own.total},
        "notes": notes(config, delta, own, rates["random_signs"]),
    }
    if config.target is not None:
        facts["target"] = {"index": config.target, "share": int(own.answers[config.target]) / own.total}
    if own.right is not None:
        facts["accuracy"] = {"clean": rates["none"].right / own.total, "perturbed": own.right / own.total}
    x = held_out.head(EXAMPLES)["images"].to(delta.device)
    picture, _ = perturbation(torch.zeros_like(delta)[None], delta[None])
    return facts, {"picture.png": picture, "examples.png": torch.stack([x, apply(delta, x)], 1).flatten(0, 1)}


def rated(fooling: Fooling) -> dict[str, Any]:
    """A fooling rate with its 95 % interval."""
    return {"rate": fooling.rate, "interval": wilson(fooling.changed, fooling.total), "images": fooling.total}


def notes(config: UniversalConfig, delta: Tensor, own: Fooling, control: Fooling) -> list[str]:
    sentences = []
    if config.norm == "linf" and abs(config.radius * 255 - round(config.radius * 255)) > 1e-3:
        whole = int(config.radius * 255)
        sentences.append(f"eps is {config.radius * 255:.4g}/255; levels are whole, so at most {whole}/255 is used.")
    if not bool(delta.any()):
        sentences.append("eps leaves no whole level to change: nothing is perturbed.")
    if wilson(own.changed, own.total)[0] <= wilson(control.changed, control.total)[1]:
        sentences.append(f"With {own.total} images, it cannot be told from random signs of the same size.")
    return sentences


def store(facts: dict[str, Any], delta: Tensor, pictures: dict[str, Tensor]) -> int:
    """Writes the files under the digest of facts and numbers, and adds it to the facts. Returns their size in bytes."""
    files = {"delta.npy": codecs.encode_npy(delta)}
    facts["digest"] = hashlib.sha256(integrity.undigested(facts) + files["delta.npy"]).hexdigest()
    files["picture.png"] = codecs.encode_png(pictures["picture.png"])[0]
    files["examples.png"] = codecs.grid_png(codecs.to_uint8(pictures["examples.png"]), columns=2)
    for name, data in files.items():
        blobs.put(rows.key(facts["digest"], name), data, create_only=False)
    return sum(map(len, files.values()))
