"""The job kind "measurement": the metrics of a published model, on the dataset that it learned from."""

import math
from collections.abc import Iterator
from functools import partial

from app.core.errors import NotFound
from app.core.jobs import measurements
from app.core.settings import settings
from models.training.loop import evaluate
from workers import devices
from workers.jobs.job import Result, RunningJob
from workers.store import model_rows
from workers.store.models import load_card, load_model
from workers.store.training_data import open_source

QUICK_ROWS = {"train": 2000, "validation": 500}
"""Images that `measure: quick` looks at."""
BASELINES = (
    ("mse", "mse_mean_image", -1, "always answering the mean image"),
    ("accuracy", "accuracy_majority", 1, "always answering the most frequent class"),
    ("miou", "miou_majority", 1, "always answering the most frequent class"),
)


def run_measurement(job: RunningJob) -> Result:
    """Measures the model and writes its metrics and warnings into its row, and into the result of its training."""
    devices.use_threads(settings().train_threads)
    spec = job.spec
    try:
        digest = model_rows.digest(job, spec["model"])
        card, model = load_card(digest), load_model(digest).to(devices.device())
    except NotFound:
        return Result({"model": spec["model"], "deleted": True})
    source = open_source(job.bind, job.tenant, spec["dataset"], spec["dataset_digest"], job.stop_if_asked)
    train, validation = source.columns(devices.device(), job.stop_if_asked)
    quick = spec["measure"] == "quick"
    if quick:
        train, validation = train.subset(QUICK_ROWS["train"]), validation.subset(QUICK_ROWS["validation"])
    measured = evaluate(model, train, validation, card["seed"], spec["images"], spec["step"], quick) | card["metrics"]
    metrics = {name: value if math.isfinite(value) else None for name, value in measured.items()}
    sentences = [*card["warnings"], *model.warnings(measured), *warnings(metrics)]
    found = {"metrics": metrics, "warnings": list(dict.fromkeys(sentences))}
    value = {"model": card["name"], "version": digest, "measure": spec["measure"], **found}
    return Result(value, partial(measurements.arrive, tenant=job.tenant, digest=digest, job=job.id, **found))


def warnings(metrics: dict[str, float | None]) -> Iterator[str]:
    """Warnings about metrics that are no better than a baseline, or not finite."""
    for name, baseline, better, what in BASELINES:
        value, reference = metrics.get(name), metrics.get(baseline)
        if value is not None and reference is not None and (value - reference) * better <= 0:
            yield f"{name} is {value:.4g}, no better than {reference:.4g} of {what}: train longer, or look at the data."
    if not_finite := sorted(key for key, value in metrics.items() if value is None):
        yield f"{', '.join(not_finite)} could not be measured: the values are not finite."
