"""The processes of a training on several devices: the job's process is the first rank and starts the others.

The others (workers/jobs/rank.py) compute and hold nothing else: lease, log and checkpoints belong to the first. They
die with it, and if one of them dies the attempt has failed.
"""

import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import structlog

from app.core.errors import WorkerLost
from app.core.jobs import state as jobs
from workers.jobs.job import RunningJob, Stopped

if TYPE_CHECKING:
    from models.training.parallel import ParallelTraining

log = structlog.get_logger(__name__)

GRACE_SECONDS = 10
"""How long the first rank may take to notice that another one is gone."""
LEAVE_SECONDS = 60
HOST = "127.0.0.1"


class Group:
    """The other ranks of a job, as a context; nothing for a job on one device.

    Leaving it ends them. Raises WorkerLost if one of them ended before.
    """

    command = (sys.executable, "-m", "workers.jobs.rank")

    def __init__(self, job: RunningJob):
        self.job, self.size = job, job.spec.get("devices") or 1
        self.others: list[subprocess.Popen] = []
        self.training: ParallelTraining | None = None
        self.store: Any = None
        self.lost: WorkerLost | None = None
        self._over = threading.Event()

    def __enter__(self) -> "Group":
        """Starts the processes: they import torch while the first rank opens the dataset."""
        if self.size > 1:
            os.environ.update(one_node())
            for rank in range(1, self.size):
                env = rank_environment(rank, self.size)
                self.others.append(subprocess.Popen(self.command, env=env, stdin=subprocess.PIPE, text=True))
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        return self

    def join(self, training: "ParallelTraining", dataset: str) -> None:
        """Gives the others the state of `training`, on the dataset with this digest."""
        if self.size == 1:
            return
        from torch.distributed import TCPStore

        from models.training.ranks import Ranks

        self.store = TCPStore(HOST, 0, self.size, is_master=True, wait_for_workers=False)
        config = training.family.config.model_dump(mode="json")
        job = {"id": self.job.id, "tenant": self.job.tenant, "spec": self.job.spec | {"config": config}}
        message = {"job": job, "dataset": dataset, "port": self.store.port, "size": self.size}
        for rank, process in enumerate(self.others, 1):
            process.stdin.write(json.dumps(message | {"rank": rank}) + "\n")
            process.stdin.flush()
        training.join(Ranks.join(self.store, 0, self.size, training.device))
        self.training = training

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        lost = self._wait_for_loss() if self.others and isinstance(error, (RuntimeError, OSError)) else None
        self._over.set()
        if self.training and (error is None or isinstance(error, Stopped)):
            self._dismiss(self.training)
        for process in self.others:
            process.kill()
            process.wait()
        if lost:
            raise lost from error

    def _wait_for_loss(self) -> WorkerLost | None:
        """Why another rank ended: what it left undone comes as an error of the connection to it."""
        deadline = time.monotonic() + GRACE_SECONDS / 2
        while self.lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.lost

    def _dismiss(self, training: "ParallelTraining") -> None:
        """All updates are done: what happens to the others now harms nothing."""
        try:
            training.dismiss()
            training.ranks.leave()
            for process in self.others:
                process.wait(LEAVE_SECONDS)
        except (RuntimeError, subprocess.TimeoutExpired) as failure:
            log.warning("ranks_not_dismissed", job=self.job.id, error=str(failure))

    def _watch(self) -> None:
        """Notices the end of a process. The first rank may wait for it for ever: then the attempt is ended here."""
        while not self._over.wait(0.2):
            for rank, process in enumerate(self.others, 1):
                if process.poll() is not None and not self._over.is_set():
                    self.lost = self._loss(rank, process.returncode)
                    log.error("rank_lost", job=self.job.id, rank=rank, status=process.returncode)
                    if not self._over.wait(GRACE_SECONDS):
                        self._fail_attempt()
                    return

    def _loss(self, rank: int, status: int) -> WorkerLost:
        key = f"error{rank}"
        said = self.store.get(key).decode() if self.store and self.store.check([key]) else None
        why = said or (f"killed by signal {-status}" if status < 0 else f"status {status}")
        return WorkerLost(
            f"The process of device {rank + 1} of {self.size} ended: {why}.",
            remedy="See the log of the worker.",
            cause="rank-lost",
        )

    def _fail_attempt(self) -> None:
        job = self.job
        job.ending = True
        job.write(lambda conn: jobs.fail_attempt(conn, job.id, job.token, self.lost.problem()))
        os._exit(1)


def one_node() -> dict[str, str]:
    """gloo over the loopback interface."""
    return {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo")} if sys.platform == "linux" else {}


def rank_environment(rank: int, size: int) -> dict[str, str]:
    """Each rank sees one of the GPUs of the job and has its share of the threads."""
    gpus = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry]
    visible = {"CUDA_VISIBLE_DEVICES": gpus[rank]} if len(gpus) == size else {}
    threads = str(max(1, int(os.environ.get("ANAMORPH_TRAIN_THREADS") or 0) // size))
    shares = dict.fromkeys(("ANAMORPH_TRAIN_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    return {**os.environ, **visible, **shares, "ANAMORPH_JOB_PARENT": str(os.getpid())}
