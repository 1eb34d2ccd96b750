"""What a running training tells and keeps: progress, curves, snapshots and checkpoints.

All but the checkpoints for resuming sit at points that depend on the length of the training alone
(workers/jobs/milestones.py), so an attempt that starts from a checkpoint passes the points of the one before and
overwrites them with equal values.
"""

import math
import time
from collections import deque
from dataclasses import asdict
from typing import Any

from app.core.jobs import checkpoints, events
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import reading
from models.diagnosis import Notice
from models.training.checkpoint import State
from models.training.loop import Meter, Step, Training
from workers import codecs
from workers.jobs.job import RunningJob
from workers.jobs.milestones import mark_steps, snapshot_steps, window_of
from workers.store.models import save_checkpoint

REPORT_SECONDS = 0.5
METER = "meter/"


class TrainingLog:
    """Belongs to one attempt; `note` is called after each update."""

    def __init__(self, job: RunningJob, training: Training, dataset: str):
        """`dataset` is the digest that each checkpoint names, for the attempt that starts from it."""
        self.job, self.training, self.dataset = job, training, dataset
        self.meter, self.pending = Meter(), []
        self.kept, self.marks = checkpoints.newest(job.last_checkpoint), checkpoints.marks(job.last_checkpoint)
        steps = -(-training.total // training.batch_size)
        self.window, self.looks, self.marking = window_of(steps), snapshot_steps(steps), mark_steps(steps)
        self.latest: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        self.started = self.reported = self.saved = time.monotonic()
        self.looked_at: int | None = None
        self.saved_at: int | None = None
        self.told: set[tuple] = set()
        self.recent: deque[tuple[float, int]] = deque([(self.started, training.images)], maxlen=40)

    def begin(self, state: State | None) -> None:
        """Before the first update: takes over the half-filled point of the attempt before."""
        self.report()
        if self.job.attempt > 1:
            with reading(self.job.bind) as conn:
                self.told = {_key(event) for event in events.alarms(conn, [self.job.id])}
        if state:
            counts = state.facts.get("meter", {})
            device = self.training.family.device
            self.meter.counts = dict(counts)
            self.meter.sums = {name: state.tensors[METER + name].to(device).clone() for name in counts}
            self.latest, self.measured = state.facts.get("latest", {}), dict(state.facts.get("told", {}))
        else:
            self.training.grow_to(max(0, self.training.images - self.training.batch_size))
            self.look()

    def note(self, step: Step) -> None:
        """After an update. Reads the clock and adds to sums; the rest happens twice a second or at its points."""
        self.meter.add(step.metrics)
        self.measured |= step.measured
        number, now = self.training.step, time.monotonic()
        if number % self.window == 0 or step.images >= step.total:
            self.latest, self.measured = self.meter.pop_means() | self.measured, {}
            self.pending.append((step.images, self.latest))
        for notice in step.notices:
            self.tell(notice)
        if number in self.looks:
            self.look()
        if number in self.marking:
            self.save(mark=True)
        if now - self.reported >= REPORT_SECONDS:
            self.report()
        if now - self.saved >= settings().checkpoint_seconds:
            self.save()

    def look(self) -> None:
        """A snapshot: a contact sheet of what the model makes of the same inputs as ever, with the metrics there."""
        images = self.training.images
        if self.looked_at == images:
            return
        pictures = self.training.snapshot()
        self.looked_at = images
        if pictures is not None:
            blobs.put(f"jobs/{self.job.id}/snapshots/{images}.png", codecs.grid_png(pictures), create_only=False)
            self.job.event("snapshot", {"images": images, "metrics": self._metrics()})

    def tell(self, notice: Notice) -> None:
        """An alarm, its treatment or its end, as an event; not again by an attempt that passes the same point."""
        data = asdict(notice.alarm) | {"at_images": notice.images}
        key = _key({"kind": notice.kind, "data": data})
        if key not in self.told:
            self.told.add(key)
            self.job.event(notice.kind, data)

    def report(self) -> None:
        """Progress, and the points of the curves since the last report."""
        now, images, total = time.monotonic(), self.training.images, self.training.total
        self.recent.append((now, images))
        (then, before), *_ = self.recent
        rate = (images - before) / max(now - then, 1e-9)
        self.job.progress(images, total, round((total - images) / rate, 1) if rate else None)
        self.job.curve(self.pending)
        self.pending = []
        self.reported = time.monotonic()

    def save(self, mark: bool = False) -> None:
        """A checkpoint, from which another attempt goes on as if nothing had happened; a mark stays to be forked."""
        self.report()
        if self.saved_at == self.training.images:
            return
        state = self.training.state()
        sums = {METER + name: value for name, value in self.meter.sums.items()}
        facts = state.facts | {"meter": self.meter.counts, "latest": self.latest, "told": self.measured}
        key = self.job.artifact_key(f"{checkpoints.CHECKPOINT}{state.facts['images']}.safetensors")
        before = self.kept + self.marks
        self.kept = save_checkpoint(key, State(state.tensors | sums, facts), self.kept)
        if mark:
            self.marks = checkpoints.marked(self.marks, self.kept[0], settings().checkpoint_bytes)
        ref = {"images": state.facts["images"], "dataset": self.dataset, "kept": self.kept, "marks": self.marks}
        self.job.checkpoint(ref)
        for entry in before:
            if entry not in self.kept + self.marks:
                blobs.delete_prefix(entry["key"])
        self.saved, self.saved_at = time.monotonic(), self.training.images

    def close(self) -> None:
        """Leaves everything that the next attempt, or a curious eye, needs."""
        self.look()
        self.save()

    def _metrics(self) -> dict[str, float | None]:
        """The means since the last point of the curves; that point itself where it is here."""
        found = self.meter.means() or self.latest
        return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _key(event: dict[str, Any]) -> tuple:
    return event["kind"], event["data"]["name"], event["data"]["at_images"]
