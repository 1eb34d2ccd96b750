"""Who does which kind of job: one function `(RunningJob) -> Result` each, imported only in the job's own process."""

from collections.abc import Callable
from importlib import import_module

from app.core.errors import Internal

RUNNERS = {
    "training": "workers.jobs.kinds.training:run_training",
    "measurement": "workers.jobs.kinds.measurement:run_measurement",
    "dataset": "workers.jobs.kinds.dataset:run_dataset",
    "operation": "workers.jobs.kinds.operation:run_operation",
    "export": "workers.jobs.kinds.export:run_export",
    "model": "workers.jobs.kinds.import_model:run_import",
    "report": "workers.jobs.kinds.report:run_report",
    "defence": "workers.jobs.kinds.defence:run_defence",
    "perturbation": "workers.jobs.kinds.perturbation:run_perturbation",
    "oracle": "workers.jobs.kinds.oracle:run_oracle",
}


def runner_of(kind: str) -> Callable:
    if kind not in RUNNERS:
        raise Internal(f"This worker knows no jobs of kind {kind!r}.", remedy="Run the same version everywhere.")
    module, function = RUNNERS[kind].split(":")
    return getattr(import_module(module), function)
