"""The job kind "report": a published model looked at over a dataset; numbers as JSON, plots and sheets as files."""

import json
import time
from dataclasses import asdict
from typing import Any

import torch

from app.core import blobs
from app.core.database import reading
from app.core.errors import AnamorphError, InvalidRequest
from app.core.settings import settings
from models.data import Columns
from models.registry import reports
from models.reports.core import Findings, Progress, Report, Subject
from models.types import DataSpec
from workers import codecs, devices, plots, records
from workers.artifacts import load_card, load_model, pack
from workers.references import loader
from workers.running import Result, RunningJob
from workers.shelves import BlobShelf
from workers.sources import open_source

ROWS_IN_RESULT = 100


def run_report(job: RunningJob) -> Result:
    """Runs the report of the spec {"report", "model", "dataset", "params", "seed"} and stores what it found."""
    devices.use_threads(settings().train_threads)
    kind = reports()[job.spec["report"]]
    with reading(job.bind) as conn:
        digest = records.digest_of(conn, job.tenant, job.spec["model"])
    subject = open_subject(job, kind, digest)
    params = kind.Params(**job.spec.get("params") or {})
    with torch.no_grad():
        findings = follow(job, kind().run(subject, params, (job.last_checkpoint or {}).get("kept")))
    artifacts = store(job, findings)
    value = {
        "report": kind.name,
        "model": job.spec["model"],
        "version": digest,
        "dataset": job.spec["dataset"],
        "params": params.model_dump(mode="json"),
        "seed": subject.seed,
        "facts": findings.facts,
        "tables": {name: rows[:ROWS_IN_RESULT] for name, rows in findings.tables.items()},
        "notes": findings.notes,
    }
    artifacts["report.json"] = job.artifact_key("report.json")
    whole = value | {"tables": findings.tables, "curves": [asdict(curve) for curve in findings.curves]}
    blobs.put(artifacts["report.json"], json.dumps(whole).encode(), create_only=False)
    return Result(value | {"artifacts": artifacts})


def open_subject(job: RunningJob, kind: type[Report], digest: str) -> Subject:
    """The model and the dataset, and the model's own data while it still exists."""
    model = load_model(digest).to(devices.device())
    if not kind.fits(type(model)):
        needed = ", ".join(capability.__name__ for capability in kind.needs)
        raise InvalidRequest(
            f"The report {kind.name} needs a model that {needed}; {model.name} does not.", field="model"
        )
    source = open_source(job.bind, job.tenant, job.spec["dataset"], tick=job.stop_if_asked)
    data = DataSpec.from_facts(source.data.facts)
    kind.check(model, data)
    shelf = BlobShelf(source.data.digest, job.stop_if_asked)
    train, validation = Columns(source.data.train, shelf), Columns(source.data.validation)
    home, learned = home_of(job, digest)
    return Subject(model, data, train, validation, home, job.spec.get("seed") or 0, learned, loader(job))


def home_of(job: RunningJob, digest: str) -> tuple[Columns | None, Columns | None]:
    """The validation and the training split of the data the model learned from; None when they were deleted."""
    card = load_card(digest)
    try:
        found = open_source(job.bind, job.tenant, card["dataset"], card["dataset_digest"]).data
    except AnamorphError:
        return None, None
    return Columns(found.validation), Columns(found.train)


def follow(job: RunningJob, run) -> Findings:
    """Drives a report to its end: progress, what it wants kept, and the wish to stop."""
    started = saved = time.monotonic()
    while True:
        try:
            step: Progress = next(run)
        except StopIteration as end:
            return end.value
        now = time.monotonic()
        left = (step.total - step.done) * (now - started) / max(step.done, 1)
        job.progress(step.done, step.total, round(left, 1))
        if step.kept is not None and (job.stopping or now - saved >= settings().checkpoint_seconds):
            job.checkpoint({"kept": step.kept})
            saved = now
        job.stop_if_asked()


def store(job: RunningJob, findings: Findings) -> dict[str, Any]:
    """Plots and sheets as blobs of this attempt; gives their keys by file name."""
    files = {}
    for curve in findings.curves:
        name = curve.title.lower().replace(" ", "-")
        files |= {f"{name}.{kind}": data for kind, data in plots.draw(curve).items()}
    for name, images in findings.pictures.items():
        files[f"{name}.png"] = codecs.grid_png(images)
    if findings.fitted is not None:
        files["fitted.safetensors"] = pack(findings.fitted.tensors, findings.fitted.facts)
    for name, data in files.items():
        blobs.put(job.artifact_key(name), data, create_only=False)
    return {name: job.artifact_key(name) for name in files}
