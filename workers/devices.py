"""The device of tensors and the number of threads, from the settings."""

import os
import shutil
import tempfile
from pathlib import Path

import structlog
import torch

from app.core.settings import settings

log = structlog.get_logger(__name__)


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


def prepare_cuda() -> None:
    """The environment of a training on CUDA. Call it before the first tensor is on the device."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it products are not deterministic
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(settings().data_dir.absolute() / "compiled"))


def can_compile() -> bool:
    """Whether compiled networks can be made here: with a C compiler, and kept where libraries may be loaded from."""
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    if not any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        log.warning("compile.off", why="no C compiler is installed", remedy="Install gcc, or set compile to false.")
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            executable = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError:
        executable = False
    if not executable:
        why = f"{folder} is not writable, or is mounted noexec"
        log.warning("compile.off", why=why, remedy="Mount ANAMORPH_DATA_DIR where files may be executed.")
    return executable


def keep_dynamo_out() -> None:
    """Lets optimisers step without importing torch._dynamo, which costs 1.3 s of CPU time and 70 MB.

    It would be imported for a graph break around each step. Only forward passes are compiled here, and compiling them
    imports it.
    """
    kinds = [torch.optim.Optimizer, *torch.optim.Optimizer.__subclasses__()]
    for kind in kinds:
        for name, method in list(vars(kind).items()):
            plain, code = getattr(method, "__wrapped__", None), getattr(method, "__code__", None)
            if plain is None or code is None:
                continue
            if code.co_filename == torch._compile.__file__:
                plain.__dynamo_disable = plain
            elif name == "step" and code.co_name == "_use_grad":
                kind.step = torch.no_grad()(plain)
