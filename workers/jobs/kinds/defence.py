"""The job kind "defence": publishes a classifier with the defence stages in front of it as a model of its own."""

from functools import partial

import torch

from app.core.errors import AnamorphError
from app.core.settings import settings
from models.capabilities import UNDECIDED, predicted_classes
from models.data import Columns
from models.defences.defended import DRAWS, Defended, defend
from models.evaluation.metrics import spaced_rows
from models.types import ConfigError, DataSpec
from workers import devices
from workers.jobs.job import Result, RunningJob
from workers.store import model_rows
from workers.store.models import load_card, publish
from workers.store.training_data import Source, open_source

IMAGES = 1000
"""Clean images on which the detector's threshold is set and accuracy is measured."""
COPIED = ("dataset", "dataset_digest", "licence", "attribution")


def run_defence(job: RunningJob) -> Result:
    """Builds, measures and publishes the model of the spec {"model", "name", "stages", "draws", "detector", ...}."""
    devices.use_threads(settings().train_threads)
    spec = job.spec
    card, load = load_card(model_rows.digest(job, spec["model"])), model_rows.loader(job)
    stages, detector = spec["stages"], spec.get("detector")
    draws = spec.get("draws") or DRAWS
    defended = defend(load(spec["model"]), spec["model"], stages, load, draws=draws, detector=detector)
    source = clean_images(job, card)
    metrics = measure(job, defended, source) if source else {}
    extra = {name: card.get(name) for name in COPIED} | {"name": spec["name"], "seed": card.get("seed")}
    digest, own = publish(defended, card["data"], extra | {"metrics": metrics, "made_from": spec["model"]})
    value = {"model": spec["name"], "version": digest, "metrics": metrics, "config": own["config"]}
    value["warnings"] = [] if source else ["No clean images were found, so the detector has no threshold."]
    return Result(value, partial(model_rows.register, tenant=job.tenant, card=own, job_id=job.id))


def clean_images(job: RunningJob, card: dict) -> Source | None:
    """The dataset in the spec, by default the one the model learned from; None if that was deleted."""
    if name := job.spec.get("dataset"):
        source = open_source(job.bind, job.tenant, name, tick=job.stop_if_asked)
        shape = DataSpec.from_facts(card["data"]).shape
        if "images" not in source.data.validation or DataSpec.from_facts(source.data.facts).shape != shape:
            size = "x".join(map(str, shape))
            raise ConfigError(
                f"the model needs validation images of {size} (channels, height, width)", "dataset", "choose another"
            )
        return source
    try:
        return open_source(job.bind, job.tenant, card["dataset"], card["dataset_digest"], job.stop_if_asked)
    except AnamorphError:
        return None


@torch.no_grad()
def measure(job: RunningJob, defended: Defended, source: Source) -> dict[str, float]:
    """Fits the detector's threshold; with labels of its classes, also the accuracy with and without stages."""
    columns = Columns(source.data.validation)
    rows = {
        name: torch.cat(list(spaced_rows(columns, name, IMAGES))) for name in ("images", "labels") if name in columns
    }
    images = rows["images"]
    if defended.detector.needs_training:
        teach(job, defended, Columns(source.data.train))
    defended.calibrate(images)
    labelled = "labels" in rows and tuple(source.data.facts.get("classes") or ()) == defended.data.classes
    networks = {"accuracy": defended.logits, "accuracy_undefended": defended.base.logits}
    correct, counted = dict.fromkeys(networks, 0), dict.fromkeys(networks, 0)
    for start in range(0, len(images) if labelled else 0, 64):
        job.stop_if_asked()
        part, labels = (column[start : start + 64].to(defended.device) for column in (images, rows["labels"]))
        for name, logits in networks.items():
            classes = predicted_classes(logits(part))
            correct[name] += int((classes == labels).sum())
            counted[name] += int((classes != UNDECIDED).sum())
        job.progress(start + len(part), len(images))
    accuracies = {name: correct[name] / counted[name] if counted[name] else None for name in networks if labelled}
    return accuracies | {"images": len(images), "threshold": defended.threshold}


def teach(job: RunningJob, defended: Defended, train: Columns) -> None:
    """Trains the detector on clean training images and attacks on them; validation images set its threshold."""
    images = torch.cat(list(spaced_rows(train, "images", defended.detector.config.images)))
    for step, total in defended.fit_detector(images):
        job.progress(step, total)
        job.stop_if_asked()
