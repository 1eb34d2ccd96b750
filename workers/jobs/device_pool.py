"""The devices of this worker, and the jobs that use them. Nothing here imports torch."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from app.core.settings import settings


def worker_devices() -> tuple[str, ...]:
    """ANAMORPH_DEVICES, else the one of ANAMORPH_DEVICE, else all visible GPUs; without any, the CPU."""
    options = settings()
    if options.devices:
        return tuple(name.strip() for name in options.devices.split(",") if name.strip())
    if options.device != "auto":
        return ("cuda:0",) if options.device == "cuda" else (options.device,)
    return tuple(f"cuda:{index}" for index in range(visible_gpus())) or ("cpu",)


def visible_gpus() -> int:
    """The number of GPUs that a process of this worker would see; 0 if its torch cannot use them."""
    if "+cpu" in metadata.version("torch"):
        return 0
    count = ctypes.c_int(0)
    with contextlib.suppress(OSError, AttributeError):  # no driver
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) == 0:
            driver.cuDeviceGetCount(ctypes.byref(count))
    return count.value


def device_environment(devices: Sequence[str]) -> dict[str, str]:
    """What the environment of a job's process says about its devices: it sees no other GPU.

    The GPU cuda:i is the i-th that this worker sees; in the process it is cuda:0.
    """
    if not devices:
        return {}
    gpus = [int(name.partition(":")[2] or 0) for name in devices if name.startswith("cuda")]
    visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    numbers = [visible[index] if index < len(visible) else str(index) for index in gpus]
    return {"CUDA_VISIBLE_DEVICES": ",".join(numbers), "ANAMORPH_DEVICE": "auto" if gpus else "cpu"}


class DevicePool:
    """Which jobs use which device. Trainings have theirs alone; other jobs share the least used one."""

    def __init__(self, names: Iterable[str] | None = None):
        self.names = tuple(worker_devices() if names is None else names)
        self.choosing = threading.Lock()
        """Held by the slot that looks for the next training: who waits for several devices gets the next free ones."""
        self._alone: dict[str, str] = {}
        self._shared: dict[str, list[str]] = {name: [] for name in self.names}
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self.names)

    def wait_free(self, count: int, seconds: float) -> list[str]:
        """`count` devices without a training; [] if there are not as many within `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._free()) >= count, seconds)
            free = self._free()
            return free[:count] if len(free) >= count else []

    def take(self, devices: Sequence[str], job: str) -> None:
        """Gives `devices` to a training alone."""
        with self._changed:
            assert not self._alone.keys() & set(devices)
            self._alone |= dict.fromkeys(devices, job)

    def share(self, job: str) -> list[str]:
        """The device with the fewest jobs, which another job may share."""
        with self._changed:
            name = min(self.names, key=lambda name: (name in self._alone) + len(self._shared[name]))
            self._shared[name].append(job)
            return [name]

    def release(self, job: str) -> None:
        with self._changed:
            self._alone = {name: user for name, user in self._alone.items() if user != job}
            self._shared = {name: [user for user in users if user != job] for name, users in self._shared.items()}
            self._changed.notify_all()

    def usage(self) -> list[dict[str, Any]]:
        """Each device with the ids of its jobs."""
        with self._changed:
            alone = {name: [job] for name, job in self._alone.items()}
            return [{"device": name, "jobs": alone.get(name, []) + self._shared[name]} for name in self.names]

    def _free(self) -> list[str]:
        return [name for name in self.names if name not in self._alone]
