"""The job kind "report": a published model looked at over a dataset; numbers as JSON, plots and sheets as files."""

import json
import time
from dataclasses import asdict
from typing import Any

import torch

from app.core.errors import AnamorphError, InvalidRequest
from app.core.settings import settings
from app.core.store import blobs
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading
from models.data import Columns
from models.family import Family
from models.registry import reports
from models.reports.core.base import Findings, Params, Progress, Report, Subject
from models.types import DataSpec
from workers import codecs, devices
from workers.jobs.job import Result, RunningJob
from workers.jobs.kinds import report_html as pages
from workers.jobs.kinds import report_plots as plots
from workers.store import model_rows as records
from workers.store.dataset_cache import DatasetCache
from workers.store.models import load_card, load_model, pack
from workers.store.training_data import open_source

ROWS_IN_RESULT = 100


def run_report(job: RunningJob) -> Result:
    """Runs the report of the spec {"report", "model", "dataset", "params", "seed"} and stores what it found."""
    devices.use_threads(settings().train_threads)
    kind = reports()[job.spec["report"]]
    with reading(job.bind) as conn:
        digest = records.digest_of(conn, job.tenant, job.spec["model"])
    params = kind.Params(**job.spec.get("params") or {})
    subject, dataset = open_subject(job, kind, digest, params)
    with torch.no_grad():
        findings = follow(job, kind().run(subject, params, (job.last_checkpoint or {}).get("kept")), dataset)
    value = {
        "report": job.spec["report"],
        "model": job.spec["model"],
        "version": digest,
        "dataset": job.spec["dataset"],
        "dataset_digest": dataset,
        "torch": torch.__version__,
        "params": params.model_dump(mode="json"),
        "seed": subject.seed,
        "facts": findings.facts,
        "tables": {name: rows[:ROWS_IN_RESULT] for name, rows in findings.tables.items()},
        "notes": findings.notes,
    }
    return Result(value | {"artifacts": store(job, findings, value)})


def open_subject(job: RunningJob, kind: type[Report], digest: str, params: Params) -> tuple[Subject, str]:
    """The models and the dataset, with its digest, and the model's own data while it still exists."""
    model = load_model(digest).to(devices.device())
    if not kind.fits(type(model)):
        needed = ", ".join(capability.__name__ for capability in kind.needs)
        raise InvalidRequest(
            f"The report {kind.name} needs a model that {needed}; {model.name} does not.", field="model"
        )
    kept = (job.last_checkpoint or {}).get("dataset")
    source = open_source(job.bind, job.tenant, job.spec["dataset"], kept, job.stop_if_asked)
    data = DataSpec.from_facts(source.data.facts)
    kind.check(model, data)
    cache = DatasetCache(source.data.digest, job.stop_if_asked)
    train, validation = Columns(source.data.train, cache), Columns(source.data.validation)
    home, learned = home_of(job, digest)
    subject = Subject(
        model, data, train, validation, home, job.spec.get("seed") or 0, learned, records.loader(job),
        others=others(job, params), perturbations=perturbations(job, params),
    )  # fmt: skip
    return subject, source.data.digest


def others(job: RunningJob, params: Params) -> dict[str, Family]:
    """The models that `params.others` names, by name."""
    found = {}
    for reference in getattr(params, "others", ()):
        with reading(job.bind) as conn:
            digest = records.digest_of(conn, job.tenant, reference)
        name = reference.partition("@")[0]
        found[f"{name} ({digest[:8]})" if name in found else name] = load_model(digest).to(devices.device())
    return found


def perturbations(job: RunningJob, params: Params) -> dict[str, torch.Tensor]:
    """The universal perturbations that `params.perturbations` names."""
    found = {}
    for name in getattr(params, "perturbations", ()):
        with reading(job.bind) as conn:
            row = perturbation_rows.get(conn, job.tenant, name)
        delta = codecs.decode_npy(blobs.get(perturbation_rows.key(row["digest"], "delta.npy")))
        found[name] = torch.from_numpy(delta).to(devices.device())
    return found


def home_of(job: RunningJob, digest: str) -> tuple[Columns | None, Columns | None]:
    """The validation and the training split of the data the model learned from; None when they were deleted."""
    card = load_card(digest)
    try:
        found = open_source(job.bind, job.tenant, card["dataset"], card["dataset_digest"]).data
    except AnamorphError:
        return None, None
    return Columns(found.validation), Columns(found.train)


def follow(job: RunningJob, run, dataset: str | None = None) -> Findings:
    """Drives a report to its end: progress, what it wants kept, and the wish to stop."""
    started = saved = time.monotonic()
    kept = None
    while True:
        try:
            step: Progress = next(run)
        except StopIteration as end:
            return end.value
        now = time.monotonic()
        left = (step.total - step.done) * (now - started) / max(step.done, 1)
        job.progress(step.done, step.total, round(left, 1))
        kept = step.kept if step.kept is not None else kept
        if kept is not None and (job.stopping or now - saved >= settings().checkpoint_seconds):
            job.checkpoint({"kept": kept, "dataset": dataset})
            saved, kept = now, None
        job.stop_if_asked()


def store(job: RunningJob, findings: Findings, value: dict[str, Any]) -> dict[str, str]:
    """Plots, sheets, a page and all numbers as blobs of this attempt; gives their keys by file name."""
    files = {}
    for curve in findings.curves:
        name = curve.title.lower().replace(" ", "-")
        files |= {f"{name}.{kind}": data for kind, data in plots.draw(curve).items()}
    for name, images in findings.pictures.items():
        files[f"{name}.png"] = codecs.grid_png(images)
    if findings.fitted is not None:
        files["fitted.safetensors"] = pack(findings.fitted.tensors, findings.fitted.facts)
    shown = {name: data for name, data in files.items() if name.endswith(".svg") or name[:-4] in findings.pictures}
    files["report.html"] = pages.page(value, findings.tables, shown)
    whole = value | {"tables": findings.tables, "curves": [asdict(curve) for curve in findings.curves]}
    files["report.json"] = json.dumps(whole).encode()
    for name, data in files.items():
        blobs.put(job.artifact_key(name), data, create_only=False)
    return {name: job.artifact_key(name) for name in files}
