"""The process of a further device of a training: `python -m workers.jobs.rank`, with what to do as JSON on stdin."""

import faulthandler
import json
import os
import signal
import sys
from typing import Any

from torch.distributed import TCPStore

from app.core import logs
from app.core.jobs import state as jobs
from models.training.parallel import ParallelTraining
from models.training.ranks import Ranks
from workers import devices
from workers.data import open_dataset
from workers.jobs.group import HOST
from workers.jobs.job import RunningJob
from workers.jobs.kinds.training import build
from workers.jobs.process import die_with_parent, limit_memory
from workers.store.training_data import Source


def main() -> int:
    """Follows the first rank until it is done. The exit status is 0 then."""
    die_with_parent(int(os.environ.pop("ANAMORPH_JOB_PARENT")))
    faulthandler.enable()
    logs.configure()
    limit_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank says when to stop
    line = sys.stdin.readline()
    if not line:
        return 0
    message = json.loads(line)
    rank, size = message["rank"], message["size"]
    store = TCPStore(HOST, message["port"], size, is_master=False)
    try:
        training = new_training(message)
        ranks = Ranks.join(store, rank, size, training.device)
        training.join(ranks)
        training.follow()
    except Exception as error:
        store.set(f"error{rank}", f"{type(error).__name__}: {error}"[:500])
        raise
    ranks.leave()
    return 0


def new_training(message: dict[str, Any]) -> ParallelTraining:
    """The training of the job, with fresh weights: the first rank sends its own."""
    devices.use_threads(int(os.environ["ANAMORPH_TRAIN_THREADS"]))
    job = message["job"]
    spec = {name: value for name, value in job["spec"].items() if name != "fork_from"}
    claim = jobs.Claim(**(job | {"spec": spec}), kind="training", queue="train", attempt=0, token="", checkpoint=None)
    return build(RunningJob(claim), Source(open_dataset(message["dataset"]), None, None))


if __name__ == "__main__":
    sys.exit(main())
