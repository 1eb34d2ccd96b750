"""Where tensors live and how many threads work on them: settings turned into what torch understands."""

import os

import torch

from app.core.settings import settings


def device() -> torch.device:
    """The configured device; `auto` is the first accelerator there is."""
    wanted = settings().device
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def use_threads(wanted: int) -> None:
    """Give torch `wanted` threads; 0 leaves one core to those that answer requests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(wanted or max(1, cores - 1))
