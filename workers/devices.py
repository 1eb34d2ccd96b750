"""The device of tensors and the number of threads, from the settings."""

import os

import torch

from app.core.settings import settings


def device() -> torch.device:
    """The configured device; `auto` is the first CUDA device, else the CPU."""
    name = settings().device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def use_threads(count: int) -> None:
    """Gives torch `count` threads; 0 means all cores but one, which is left to answer requests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(count or max(1, cores - 1))
