"""The job kind "defence": a model of its own from a classifier and the stages in front of it."""

from functools import partial

import torch

from app.core.errors import AnamorphError
from app.core.settings import settings
from models.data import Columns
from models.defences.defended import DRAWS, Defended, defend
from models.evaluation.metrics import spread
from models.types import ConfigError, DataSpec
from workers import devices
from workers.jobs.job import Result, RunningJob
from workers.store import model_rows as records
from workers.store.models import load_card, publish
from workers.store.training_data import Source, open_source

IMAGES = 1000
"""Clean images that set the detector's threshold and measure accuracy."""
COPIED = ("dataset", "dataset_digest", "licence", "attribution")


def run_defence(job: RunningJob) -> Result:
    """Makes the model of the spec {"model", "name", "stages", "draws", "detector", "dataset"} and measures it."""
    devices.use_threads(settings().train_threads)
    spec = job.spec
    card, load = load_card(records.digest_for_job(job, spec["model"])), records.loader(job)
    stages, detector = spec["stages"], spec.get("detector")
    made = defend(load(spec["model"]), spec["model"], stages, load, draws=spec.get("draws") or DRAWS, detector=detector)
    source = clean_images(job, card)
    metrics = measure(job, made, source) if source else {}
    extra = {name: card.get(name) for name in COPIED} | {"name": spec["name"], "seed": card.get("seed")}
    digest, own = publish(made, card["data"], extra | {"metrics": metrics, "made_from": spec["model"]})
    value = {"model": spec["name"], "version": digest, "metrics": metrics, "config": own["config"]}
    value["warnings"] = [] if source else ["No clean images were found, so the detector has no threshold."]
    return Result(value, partial(records.register, tenant=job.tenant, card=own, job_id=job.id))


def clean_images(job: RunningJob, card: dict) -> Source | None:
    """The dataset that was named, else the one the model learned from; None when that is gone."""
    if name := job.spec.get("dataset"):
        source = open_source(job.bind, job.tenant, name, tick=job.stop_if_asked)
        given, wanted = DataSpec.from_facts(source.data.facts), DataSpec.from_facts(card["data"])
        if "images" not in source.data.validation or given.shape != wanted.shape:
            raise ConfigError("the dataset has no images of the model's size", "dataset", "name another")
        return source
    try:
        return open_source(job.bind, job.tenant, card["dataset"], card["dataset_digest"], job.stop_if_asked)
    except AnamorphError:
        return None


@torch.no_grad()
def measure(job: RunningJob, made: Defended, source: Source) -> dict[str, float]:
    """Readies the detector; accuracy with and without the stages when there are labels of the same classes."""
    columns = Columns(source.data.validation)
    rows = {name: torch.cat(list(spread(columns, name, IMAGES))) for name in ("images", "labels") if name in columns}
    images = rows["images"]
    if made.detector.learns:
        teach(job, made, Columns(source.data.train))
    made.calibrate(images)
    labelled = "labels" in rows and tuple(source.data.facts.get("classes") or ()) == made.data.classes
    right = {"accuracy": 0, "accuracy_undefended": 0}
    for start in range(0, len(images) if labelled else 0, 64):
        job.stop_if_asked()
        part, labels = (column[start : start + 64].to(made.device) for column in (images, rows["labels"]))
        right["accuracy"] += int((made.logits(part).argmax(1) == labels).sum())
        right["accuracy_undefended"] += int((made.base.logits(part).argmax(1) == labels).sum())
        job.progress(start + len(part), len(images))
    found = {name: hits / len(images) for name, hits in right.items()} if labelled else {}
    return found | {"images": len(images), "threshold": made.threshold}


def teach(job: RunningJob, made: Defended, train: Columns) -> None:
    """Shows the detector clean training images and attacks on them: the validation images are for its threshold."""
    lesson = torch.cat(list(spread(train, "images", made.detector.config.images)))
    for done, total in made.teach(lesson):
        job.progress(done, total)
        job.stop_if_asked()
