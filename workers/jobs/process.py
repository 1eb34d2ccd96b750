"""The process of one job: `python -m workers.jobs.process JOB_ID`, with the token in ANAMORPH_JOB_TOKEN.

With `--spare` instead of an id it is a spare process (workers/jobs/spare.py), which gets both later.
"""

import ctypes
import faulthandler
import os
import resource
import signal
import sys

from app.core import logs
from app.core.settings import settings
from workers.jobs import lifecycle
from workers.jobs.job import LEASE_LOST
from workers.jobs.spare import SPARE, wait_for_job

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its worker dies, so that no orphan keeps computing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(LEASE_LOST)


def limit_memory() -> None:
    """Sets the limit of ANAMORPH_JOB_MEMORY_BYTES."""
    if limit := settings().job_memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> int:
    parent = int(os.environ.pop("ANAMORPH_JOB_PARENT", os.getppid()))
    die_with_parent(parent)
    faulthandler.enable()
    job_id = wait_for_job() if sys.argv[1] == SPARE else sys.argv[1]
    os.environ.pop("ANAMORPH_JOB_PARENT", None)
    token = os.environ.pop("ANAMORPH_JOB_TOKEN")
    logs.configure()
    os.nice(int(os.environ.pop("ANAMORPH_JOB_NICE", 0)))
    limit_memory()
    return lifecycle.run(job_id, token, parent)


if __name__ == "__main__":
    sys.exit(main())
