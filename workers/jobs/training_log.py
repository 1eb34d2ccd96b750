"""Records a running training: progress, curves, snapshots, alarms and checkpoints.

Everything but the checkpoints for resuming is written at updates that depend on the length of the training alone. An
attempt that starts from a checkpoint therefore passes the same points as the attempt before and overwrites them with
equal values.
"""

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from app.core.jobs import checkpoints, events
from app.core.settings import settings
from app.core.store import blobs
from app.core.store.database import reading
from models.diagnosis import Notice
from models.family import Family
from models.training.checkpoint import State, on_host
from models.training.loop import Meter, Step, Training
from workers import codecs
from workers.jobs.job import RunningJob
from workers.store.models import kept_checkpoints, save_checkpoint

REPORT_SECONDS = 0.5
METER = "meter/"
"""Prefix of the meter's sums among the tensors of a checkpoint."""
CURVE_POINTS = 200, 1000
"""Points of a curve: the first number in short trainings; in long ones a point per 50 updates, at most the second."""
SNAPSHOTS = 6, 72
"""Fewest and most evenly spaced snapshots; between, as many as cost SNAPSHOT_SHARE of the updates."""
SNAPSHOT_SHARE = 0.03
CHECKPOINT_SHARE = 0.01
"""Of the time of a training: checkpoints for resuming are further apart where they take longer."""
MARKS = 8
"""Checkpoints kept to be forked from, each at twice the images of the one before."""


class TrainingLog:
    """The log of one attempt. Call `begin` before the first update, `record` after each, `close` at the end."""

    def __init__(self, job: RunningJob, training: Training, dataset: str):
        """`dataset` is the digest that each checkpoint names for the attempt that starts from it."""
        self.job, self.training, self.dataset = job, training, dataset
        self.meter, self.pending = Meter(), []
        self.kept, self.marks = checkpoints.newest(job.last_checkpoint), checkpoints.marks(job.last_checkpoint)
        steps = -(-training.total // training.batch_size)
        self.window = window_of(steps)
        self.snapshot_steps = snapshot_steps(steps, training.family.snapshot_cost)
        self.mark_steps = mark_steps(steps)
        self.checkpoint_seconds = settings().checkpoint_seconds
        self.latest: dict[str, float] = {}
        self.measured: dict[str, float] = {}
        self.started = self.reported = self.saved = time.monotonic()
        # what an idle machine would take: on a CPU other processes do not count
        self.clock = time.thread_time if training.device.type == "cpu" else time.monotonic
        self.begun_at, self.begun = training.images, self.clock()
        self.snapshot_at: int | None = None
        self.saved_at: int | None = None
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: tuple[Future, bool] | None = None
        """The checkpoint that is being written, and whether it is a mark."""
        self.emitted: set[tuple] = set()
        self.recent: deque[tuple[float, int]] = deque([(self.started, training.images)], maxlen=40)

    def begin(self, state: State | None) -> None:
        """Continues the unfinished point of the curve in `state`, or takes the snapshot of a fresh start."""
        self.report()
        if self.job.attempt > 1:
            with reading(self.job.bind) as conn:
                self.emitted = {_key(event) for event in events.alarms(conn, [self.job.id])}
        if state:
            counts = state.facts.get("meter", {})
            device = self.training.family.device
            self.meter.counts = dict(counts)
            self.meter.sums = {name: state.tensors[METER + name].to(device).clone() for name in counts}
            self.latest, self.measured = state.facts.get("latest", {}), dict(state.facts.get("told", {}))
        else:
            self.training.grow_to(max(0, self.training.images - self.training.batch_size))
            self.save_snapshot()

    def record(self, step: Step) -> None:
        """Records one update: adds to sums; all else happens twice a second or at the points of the schedule."""
        self.meter.add(step.metrics)
        self.measured |= step.measured
        number, now = self.training.step, time.monotonic()
        if self.writing is not None and self.writing[0].done():
            self.finish_saving()
        if number % self.window == 0 or step.images >= step.total:
            self.latest, self.measured = self.meter.pop_means() | self.measured, {}
            self.pending.append((step.images, self.latest))
        for notice in step.notices:
            self.emit_alarm(notice)
        if number in self.snapshot_steps:
            self.save_snapshot()
        if number in self.mark_steps:
            self.save(mark=True)
        if now - self.reported >= REPORT_SECONDS:
            self.report()
        if now - self.saved >= self.checkpoint_seconds:
            self.save()

    def save_snapshot(self) -> None:
        """Stores a contact sheet of the model's outputs for fixed inputs, with the metrics at this point."""
        images = self.training.images
        if self.snapshot_at == images:
            return
        pictures = self.training.snapshot()
        self.snapshot_at = images
        if pictures is not None:
            blobs.put(f"jobs/{self.job.id}/snapshots/{images}.png", codecs.grid_png(pictures), create_only=False)
            self.job.event("snapshot", {"images": images, "metrics": self._metrics()})

    def emit_alarm(self, notice: Notice) -> None:
        """Writes an alarm, its treatment or its end as an event, unless an earlier attempt wrote it."""
        data = asdict(notice.alarm) | {"at_images": notice.images}
        key = _key({"kind": notice.kind, "data": data})
        if key not in self.emitted:
            self.emitted.add(key)
            self.job.event(notice.kind, data)

    def report(self) -> None:
        """Writes the progress, and the points of the curves since the last report."""
        now, images, total = time.monotonic(), self.training.images, self.training.total
        self.recent.append((now, images))
        (then, before), *_ = self.recent
        done, seconds = self.work(before, images), now - then
        eta = round(self.work(images, total) * seconds / done, 1) if done else None
        rate = (images - self.begun_at) / max(self.clock() - self.begun, 1e-9)
        facts = {"images_per_second": round(rate, 2), "device": self.training.device.type}
        self.job.progress(images, total, eta, **(facts if rate else {}))
        self.job.curve(self.pending)
        self.pending = []
        self.reported = time.monotonic()

    def work(self, first: int, last: int, parts: int = 32) -> float:
        """The cost of the updates between two counts of images, in that of an update with a relative cost of 1."""
        family, length = self.training.family, last - first
        if type(family).relative_cost is Family.relative_cost:
            return length
        places = (first + length * (2 * part + 1) // (2 * parts) for part in range(parts))
        return length * sum(map(family.relative_cost, places)) / parts

    def save(self, mark: bool = False) -> None:
        """Copies a checkpoint from which another attempt continues exactly; a mark is kept to be forked from.

        A thread writes it; the job names it once it is written.
        """
        self.report()
        if self.saved_at == self.training.images:
            return
        began, state = time.monotonic(), self.training.state()
        sums = on_host({METER + name: value for name, value in self.meter.sums.items()})[0]
        facts = state.facts | {"meter": dict(self.meter.counts), "latest": self.latest, "told": dict(self.measured)}
        key = self.job.artifact_key(f"{checkpoints.CHECKPOINT}{state.facts['images']}.safetensors")
        self.finish_saving()
        self.writing = self.writer.submit(save_checkpoint, key, State(state.tensors | sums, facts)), mark
        self.saved, self.saved_at = time.monotonic(), self.training.images
        self.checkpoint_seconds = max(settings().checkpoint_seconds, (self.saved - began) / CHECKPOINT_SHARE)

    def finish_saving(self) -> None:
        """Waits until the last checkpoint is written, and makes it the one that another attempt starts from."""
        if self.writing is None:
            return
        (written, mark), self.writing = self.writing, None
        before = self.kept + self.marks
        self.kept = kept_checkpoints(written.result(), self.kept)
        if mark:
            self.marks = checkpoints.marked(self.marks, self.kept[0], settings().checkpoint_bytes)
        newest = {"images": self.kept[0]["images"], "dataset": self.dataset}
        self.job.checkpoint(newest | {"kept": self.kept, "marks": self.marks})
        for entry in before:
            if entry not in self.kept + self.marks:
                blobs.delete_prefix(entry["key"])

    def close(self) -> None:
        """Saves a last snapshot and the checkpoint that the next attempt continues from."""
        self.save_snapshot()
        self.save()
        self.finish_saving()

    def _metrics(self) -> dict[str, float | None]:
        """The means since the last point of the curves; at such a point, its own values."""
        means = self.meter.means() or self.latest
        return {name: value if math.isfinite(value) else None for name, value in means.items()}


def _key(event: dict[str, Any]) -> tuple:
    return event["kind"], event["data"]["name"], event["data"]["at_images"]


def window_of(steps: int) -> int:
    """Number of updates whose mean is one point of a curve."""
    return max(1, -(-steps // CURVE_POINTS[1]), min(50, -(-steps // CURVE_POINTS[0])))


def snapshot_steps(steps: int, cost: float = 0.5) -> set[int]:
    """Updates after which a snapshot is taken, if one costs as much as `cost` updates.

    Evenly spaced ones, as many as are affordable, and the halvings of the way, so that a start is seen as it happens.
    """
    fewest, most = SNAPSHOTS
    count = min(steps, most, max(fewest, int(SNAPSHOT_SHARE * steps / cost)))
    return {round(index * steps / count) for index in range(count + 1)} | halvings(steps)


def mark_steps(steps: int) -> set[int]:
    """Updates after which a checkpoint is kept to be forked from: the end, half of it, a quarter, ...

    Each is also a snapshot, which shows what would be forked.
    """
    return set(sorted(halvings(steps))[-MARKS:])


def halvings(steps: int) -> set[int]:
    """The last update, that half way, at a quarter, ... and the first."""
    return {-(-steps // 2**power) for power in range(steps.bit_length() + 1)}
