"""Who does which kind of job: one function `(RunningJob) -> Result` each, imported only in the job's own process."""

from collections.abc import Callable
from importlib import import_module

from app.core.errors import Internal

RUNNERS = {
    "training": "workers.training:run_training",
    "dataset": "workers.datasets:run_dataset",
    "operation": "workers.lane:run_operation",
    "export": "workers.exporting:run_export",
    "model": "workers.importing:run_import",
    "report": "workers.reports:run_report",
    "defence": "workers.defences:run_defence",
    "perturbation": "workers.perturbations:run_perturbation",
    "oracle": "workers.oracles:run_oracle",
}


def runner_of(kind: str) -> Callable:
    if kind not in RUNNERS:
        raise Internal(f"This worker knows no jobs of kind {kind!r}.", remedy="Run the same version everywhere.")
    module, function = RUNNERS[kind].split(":")
    return getattr(import_module(module), function)
