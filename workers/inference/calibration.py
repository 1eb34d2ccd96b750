"""The speed of this machine beside the reference machine, for forecasts of trainings.

A thread of the inference worker measures it once per processor, device and number of threads, and keeps it in the data
folder. It also reads how fast the latest trainings were. Requests read what it knows and never wait for it.
"""

import json
import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import select

from app.core.errors import AnamorphError
from app.core.settings import settings
from app.core.store.database import reading
from app.core.store.tables import jobs, models

REFERENCE = {"convolution": 18.0, "matrices": 14.0}
"""Milliseconds of the two measured tasks on one idle core of the reference machine."""
DELAY_SECONDS, REFRESH_SECONDS = 20, 30
LATEST = 200
"""Models whose trainings are looked at."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Rate:
    """How fast the updates of a finished training were, with its complete config and the facts of its images."""

    family: str
    config: dict[str, Any]
    data: dict[str, Any]
    device: str
    images_per_second: float


class Calibration(threading.Thread):
    """`slowness`: time of this machine over that of the reference machine, None until it is known."""

    slowness: float | None = None
    device = "cpu"
    rates: tuple[Rate, ...] = ()

    def __init__(self):
        super().__init__(name="calibration", daemon=True)
        self.stopping = threading.Event()

    def stop(self) -> None:
        self.stopping.set()

    def run(self) -> None:
        """Begins after the start of the service, which has better things to do."""
        while not self.stopping.wait(REFRESH_SECONDS if Calibration.slowness else DELAY_SECONDS):
            try:
                if Calibration.slowness is None:
                    Calibration.device, Calibration.slowness = known_slowness(settings().data_dir / "speed.json")
                Calibration.rates = tuple(finished_rates())
            except AnamorphError as error:
                log.warning("calibration.rates_not_read", error=error.detail)
            except Exception:
                log.exception("calibration.failed")
                return


def known_slowness(file: Path) -> tuple[str, float]:
    """The kind of the device, and the slowness from `file`, or measured and written there."""
    import torch

    from workers import devices

    device = devices.device()
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    key = f"{chip}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = measure(device)
        try:
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(known, indent=1))
            part.replace(file)
        except OSError as error:
            log.warning("calibration.not_kept", error=str(error))
    return device.type, slowness(known[key])


def processor() -> str:
    """The model of the processor and the number of its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def slowness(times: dict[str, float]) -> float:
    """The geometric mean of the two ratios to the reference machine."""
    product = 1.0
    for name, reference in REFERENCE.items():
        product *= times[name] / reference
    return product ** (1 / len(REFERENCE))


def measure(device: Any, rounds: int = 12) -> dict[str, float]:
    """Milliseconds of forward and backward passes of a convolution and of a product of matrices: the fastest rounds.

    On a CPU by the time of this thread, which other processes do not change.
    """
    import torch

    images = torch.rand(64, 16, 28, 28, device=device)
    convolution = torch.nn.Conv2d(16, 32, 3, padding=1).to(device)
    layer, rows = torch.nn.Linear(784, 512).to(device), torch.rand(512, 784, device=device)
    tasks = {"convolution": (convolution, images), "matrices": (layer, rows)}
    times, clock = {}, time.thread_time if images.device.type == "cpu" else time.perf_counter
    for name, (module, inputs) in tasks.items():
        inputs.requires_grad_()
        best = float("inf")
        for _ in range(rounds):
            start = clock()
            module(inputs).square().mean().backward()
            if inputs.is_cuda:
                torch.cuda.synchronize(device)
            best = min(best, clock() - start)
        times[name] = round(1000 * best, 3)
    return times


def finished_rates() -> list[Rate]:
    """Of the latest models, how fast their trainings were; those that do not say it are left out."""
    columns = models.c.family, models.c.config, models.c.card["data"].label("data"), jobs.c.progress
    joined = models.join(jobs, models.c.job_id == jobs.c.id)
    query = select(*columns).select_from(joined).where(jobs.c.kind == "training").order_by(models.c.id.desc())
    with reading() as conn:
        rows = conn.execute(query.limit(LATEST)).all()
    known = [row for row in rows if (row.progress or {}).get("images_per_second")]
    return [
        Rate(row.family, row.config, row.data or {}, row.progress["device"], row.progress["images_per_second"])
        for row in known
    ]
