"""The job kind "report": measures a published model on a dataset; numbers as JSON, plots and sheets as files."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from app.core.errors import AnamorphError, InvalidRequest
from app.core.settings import settings
from app.core.store import integrity
from app.core.store import perturbations as perturbation_rows
from app.core.store.database import reading
from models.capabilities import counting_nonfinite
from models.data import Columns
from models.family import Family
from models.registry import reports
from models.reports.core.base import Params, Progress, Report, ReportResult, Subject
from models.types import DataSpec
from workers import codecs, devices
from workers.jobs.job import Result, RunningJob
from workers.jobs.kinds import report_html as pages
from workers.jobs.kinds import report_plots as plots
from workers.store import model_rows
from workers.store.dataset_cache import DatasetCache
from workers.store.models import load_card, load_model, pack
from workers.store.training_data import open_source

ROWS_IN_RESULT = 100


def run_report(job: RunningJob) -> Result:
    """Runs the report of the spec {"report", "model", "dataset", "params", "seed"} and stores its result."""
    devices.use_threads(settings().train_threads)
    kind = reports()[job.spec["report"]]
    digest = model_rows.digest(job, job.spec["model"])
    params = kind.Params(**job.spec.get("params") or {})
    subject, dataset = open_subject(job, kind, digest, params)
    last = job.last_checkpoint or {}
    with torch.no_grad(), counting_nonfinite(last.get("not_finite", 0)) as not_finite:
        findings = follow(job, kind().run(subject, params, last.get("kept")), dataset, not_finite)
    notes = list(findings.notes)
    if not_finite[0]:
        notes.append(
            f"The model's output was not finite {not_finite[0]} times. Such outputs are in no rate, label or vote."
        )
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
        "notes": notes,
        "finite": not not_finite[0],
        "not_finite": not_finite[0],
    }
    return Result(value | store(job, findings, value))


def open_subject(job: RunningJob, kind: type[Report], digest: str, params: Params) -> tuple[Subject, str]:
    """The models, the dataset with its digest, and the dataset that the model learned from while it still exists."""
    model = load_model(digest).to(devices.device())
    if not kind.fits(type(model)):
        needed = ", ".join(capability.__name__ for capability in kind.needs)
        raise InvalidRequest(
            f"The report {kind.name} needs a model with: {needed}. This model ({model.name}) lacks it.",
            field="model",
        )
    saved = (job.last_checkpoint or {}).get("dataset")
    source = open_source(job.bind, job.tenant, job.spec["dataset"], saved, job.stop_if_asked)
    data = DataSpec.from_facts(source.data.facts)
    kind.check(model, data)
    cache = DatasetCache(source.data.digest, job.stop_if_asked)
    train, validation = Columns(source.data.train, cache), Columns(source.data.validation)
    model_validation, model_train = training_dataset_of(job, digest)
    subject = Subject(
        model, data, train, validation, model_validation, job.spec.get("seed") or 0, model_train,
        model_rows.loader(job),
        others=others(job, params), perturbations=perturbations(job, params),
    )  # fmt: skip
    return subject, source.data.digest


def others(job: RunningJob, params: Params) -> dict[str, Family]:
    """The models in `params.others`, by name."""
    models: dict[str, Family] = {}
    for reference in getattr(params, "others", ()):
        digest = model_rows.digest(job, reference, "params/others")
        name = reference.partition("@")[0]
        models[f"{name} ({digest[:8]})" if name in models else name] = load_model(digest).to(devices.device())
    return models


def perturbations(job: RunningJob, params: Params) -> dict[str, torch.Tensor]:
    """The universal perturbations in `params.perturbations`, by name."""
    deltas = {}
    for name in getattr(params, "perturbations", ()):
        with reading(job.bind) as conn:
            row = perturbation_rows.get(conn, job.tenant, name)
        seal = integrity.delta(row["digest"], row["facts"])
        delta = codecs.decode_npy(integrity.sound(seal, f"The numbers of perturbation {name}").read_bytes())
        deltas[name] = torch.from_numpy(delta).to(devices.device())
    return deltas


def training_dataset_of(job: RunningJob, digest: str) -> tuple[Columns | None, Columns | None]:
    """The validation and the training split of the dataset the model learned from; None if it was deleted."""
    card = load_card(digest)
    try:
        data = open_source(job.bind, job.tenant, card["dataset"], card["dataset_digest"]).data
    except AnamorphError:
        return None, None
    return Columns(data.validation), Columns(data.train)


def follow(job: RunningJob, run, dataset: str | None = None, not_finite: Sequence[int] = (0,)) -> ReportResult:
    """Runs a report to its end: writes progress and its checkpoints, and stops when asked.

    `not_finite`: its first number is the count of `counting_nonfinite`.
    """
    started = saved = time.monotonic()
    unsaved = None
    while True:
        try:
            step: Progress = next(run)
        except StopIteration as end:
            return end.value
        now = time.monotonic()
        left = (step.total - step.done) * (now - started) / max(step.done, 1)
        job.progress(step.done, step.total, round(left, 1))
        unsaved = step.progress_state if step.progress_state is not None else unsaved
        if unsaved is not None and (job.stopping or now - saved >= settings().checkpoint_seconds):
            job.checkpoint({"kept": unsaved, "dataset": dataset, "not_finite": not_finite[0]})
            saved, unsaved = now, None
        job.stop_if_asked()


def store(job: RunningJob, findings: ReportResult, value: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Stores plots, sheets, the HTML page and all numbers; returns their keys and digests by file name."""
    files = {}
    for curve in findings.curves:
        name = curve.title.lower().replace(" ", "-")
        files |= {f"{name}.{kind}": data for kind, data in plots.render(curve).items()}
    for name, images in findings.pictures.items():
        files[f"{name}.png"] = codecs.grid_png(images)
    if findings.fitted is not None:
        files["fitted.safetensors"] = pack(findings.fitted.tensors, findings.fitted.facts)
    figures = {name: data for name, data in files.items() if name.endswith(".svg") or name[:-4] in findings.pictures}
    files["report.html"] = pages.page(value, findings.tables, figures)
    whole = value | {"tables": findings.tables, "curves": [asdict(curve) for curve in findings.curves]}
    files["report.json"] = json.dumps(whole).encode()
    return job.store_artifacts(files)
