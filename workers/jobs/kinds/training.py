"""The job kind "training": from a dataset's name and a config to a published model."""

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from sqlalchemy import Connection

from app.core.errors import InvalidConfig
from app.core.jobs import checkpoints, measurements
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store.database import reading
from models.family import Family, OneLoss
from models.registry import families
from models.seeds import derive
from models.training.checkpoint import State
from models.training.loop import Training
from models.training.parallel import ParallelTraining, for_ranks
from models.types import DataSpec
from workers import devices
from workers.jobs.group import Group
from workers.jobs.job import Result, RunningJob, Stopped
from workers.jobs.training_log import TrainingLog
from workers.store import model_rows
from workers.store.models import load_checkpoint, publish
from workers.store.training_data import Source, open_source


def run_training(job: RunningJob) -> Result:
    """Trains from where the last attempt stopped and publishes the model, which is measured afterwards."""
    devices.use_threads(-(-settings().train_threads // (job.spec.get("devices") or 1)))
    devices.keep_dynamo_out()
    digest = (job.last_checkpoint or {}).get("dataset")
    with Group(job) as group:
        source = open_source(job.bind, job.tenant, job.spec["dataset"], digest, job.stop_if_asked)
        state = saved_state(job)
        training = build(job, source, state)
        if state is not None:
            restore(job, training, state)
        group.join(training, source.data.digest)
        state = state if job.last_checkpoint else None
        train(job, training, TrainingLog(job, training, source.data.digest), state)
    return complete_and_publish(job, training, source)


def train(job: RunningJob, training: Training, training_log: TrainingLog, state: State | None = None) -> None:
    """Runs the remaining updates. Saves everything and raises Stopped when the job should stop."""
    training_log.begin(state)
    for step in training.run():
        training_log.record(step)
        if job.stopping:
            training_log.close()
            raise Stopped(job.stopping)
    training_log.close()


def build(job: RunningJob, source: Source, state: State | None = None) -> Training:
    """A training with fresh weights, which are a function of the spec, or with those of the model in `init_from`.

    Its config is that of `state`, if it goes on from there.
    """
    kind, seed, device = families()[job.spec["family"]], job.spec.get("seed") or 0, devices.device()
    data = DataSpec.from_facts(source.data.facts)
    torch.manual_seed(derive(seed, "init"))
    config = kind.complete_config(config_of(job, kind, data, state), data)
    ranks, accumulate = job.spec.get("devices") or 1, job.spec.get("accumulate") or 1
    if ranks * accumulate > 1:
        config = for_ranks(config, ranks, accumulate)
    family = kind(config, data)
    if accumulate > 1:
        if not isinstance(family, OneLoss):
            raise InvalidConfig(f"accumulate is for families with one loss; {kind.name} has two.", field="accumulate")
        family.accumulate = accumulate
    if device.type == "cuda":
        devices.prepare_cuda()
        if family.config.compile and not devices.can_compile():
            family.config = family.config.model_copy(update={"compile": False})
    family = family.to(device)
    if origin := job.spec.get("init_from"):
        family.init_from(model_rows.load(job, origin, "init_from"))
    columns = source.columns(device, job.stop_if_asked)
    return (Training if ranks == 1 else ParallelTraining)(family, *columns, seed)


def config_of(job: RunningJob, kind: type[Family], data: DataSpec, state: State | None) -> dict[str, Any]:
    """The config of the training: complete in `state`, also if defaults have changed since.

    A fork takes from `state` what its request leaves out, except the length.
    """
    config = job.spec.get("config") or {}
    if state is None:
        return config
    earlier = kind.stored_config(state.facts.get("config") or config, data, state.facts.get("engine", 1))
    if job.last_checkpoint:
        return earlier
    asked = {name: value for name, value in config.items() if value is not None}
    return {name: value for name, value in earlier.items() if name not in ("images", "epochs")} | asked


def saved_state(job: RunningJob) -> State | None:
    """The checkpoint of the job, or of the job that it forks. None if the training starts fresh."""
    if job.last_checkpoint:
        state = load_checkpoint(job.last_checkpoint["kept"])
        if state is None:  # the same seed gives the same model, only later
            job.event("restarted", {"why": "no checkpoint could be read"})
        return state
    origin = job.spec.get("fork_from")
    return forked_state(job, origin if isinstance(origin, dict) else {"job": origin}) if origin else None


def forked_state(job: RunningJob, origin: dict[str, Any]) -> State:
    """A checkpoint of another job: its last, or that after `images`. Raises InvalidConfig if there is none."""
    with reading(job.bind) as conn:
        ref = jobs.get(conn, job.tenant, origin["job"])["checkpoint"]
    images = origin.get("images")
    state = load_checkpoint(checkpoints.newest(ref) if images is None else checkpoints.at(ref, images))
    if state is None:
        where = "" if images is None else f" after {images} images"
        raise InvalidConfig(
            f"Job {origin['job']} has no checkpoint{where} to fork from.",
            field="fork_from",
            remedy=f"Choose one of the checkpoints at /v1/jobs/{origin['job']}/snapshots.",
        )
    return state


def restore(job: RunningJob, training: Training, state: State) -> None:
    """Copies weights, moments and position. Raises InvalidConfig if the checkpoint of another job does not fit."""
    if job.last_checkpoint:
        training.restore(state)
        return
    if state.facts["images"] >= training.total:
        raise InvalidConfig(
            f"config/images must be more than {state.facts['images']}, where the fork starts; it is {training.total}.",
            field="config/images",
            remedy="Train for more images.",
        )
    try:
        training.restore(state)
    except (RuntimeError, KeyError) as error:
        raise InvalidConfig(
            "The checkpoint to fork from does not fit this family and config.",
            field="fork_from",
            remedy="Use the same family, dataset and layer sizes; batch, length and learning rate may differ.",
        ) from error


def complete_and_publish(job: RunningJob, training: Training, source: Source) -> Result:
    """Makes the model ready to serve and stores it. The end of the job writes its row and queues its measurement."""
    family, spec = training.family, job.spec
    metrics = training.complete()
    sentences = list(dict.fromkeys(alarm.sentence for alarm in training.monitor.standing))
    name = spec.get("name") or f"{family.name}-{spec['dataset']}"
    facts = {
        "name": name,
        "seed": training.seed,
        "metrics": metrics,
        "dataset": spec["dataset"],
        "dataset_digest": source.data.digest,
        "licence": source.licence,
        "attribution": source.attribution,
        "images": training.images,
        "warnings": sentences,
        "init_from": spec.get("init_from"),
        "fork_from": spec.get("fork_from"),
    }
    digest, card = publish(family, source.data.facts, facts)
    value = {
        "model": name,
        "version": digest,
        "metrics": metrics,
        "family": family.name,
        "dataset": spec["dataset"],
        "config": card["config"],
        "images": training.images,
        "warnings": sentences,
        "alarms": [asdict(alarm) for alarm in training.monitor.alarms],
    }
    value |= {name: spec[name] for name in ("devices", "accumulate") if name in spec}
    measurement = {"model": f"{name}@{digest}", "dataset": spec["dataset"], "dataset_digest": source.data.digest}
    measurement |= {"images": training.images, "step": training.step, "measure": spec.get("measure", "full")}
    return Result(value, partial(register, tenant=job.tenant, card=card, job_id=job.id, measurement=measurement))


def register(conn: Connection, *, tenant: str, card: dict[str, Any], job_id: str, measurement: dict[str, Any]) -> None:
    """Writes the row of the model and queues its measurement."""
    earlier = measurements.before(conn, tenant, card["digest"])
    model_rows.register(conn, tenant=tenant, card=card, job_id=job_id)
    measurements.begin(conn, tenant=tenant, digest=card["digest"], training=job_id, spec=measurement, earlier=earlier)
