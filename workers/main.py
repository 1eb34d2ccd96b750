"""The Celery worker: `celery -A workers.main worker --pool=threads -Q train,report,light` (jobs), `-Q infer` (calls).

A message for a job only wakes the slots, which do the work. This module does not import torch, so workers start fast.
"""

import atexit
import logging
import os
import threading

import structlog
from celery.signals import celeryd_after_setup, setup_logging, worker_shutting_down
from sqlalchemy import Connection

from app.core import logs
from app.core.errors import AnamorphError
from app.core.jobs import state as jobs
from app.core.jobs import workers as worker_rows
from app.core.jobs.queue import celery
from app.core.jobs.sweeper import Sweeper
from app.core.settings import settings
from app.core.store.database import migrate, transaction
from workers.inference.calibration import Calibration
from workers.inference.lane import Current, run_calls
from workers.inference.liveness import GoneListener, Pulse
from workers.jobs.device_pool import DevicePool
from workers.jobs.slot import Slot

__all__ = ["run_calls", "run_job"]
log = structlog.get_logger(__name__)

slots: list[Slot] = []


@celery.task(name="workers.main.run_job")
def run_job(job_id: str) -> None:
    """Wakes the slots. The table decides which job runs; the id is only a hint."""
    for slot in slots:
        slot.wake()


class Presence(threading.Thread):
    """Renews this worker's row in the table of live workers."""

    def __init__(self, queues: list[str], pool: DevicePool):
        super().__init__(name="presence", daemon=True)
        self.queues, self.pool, self.id = queues, pool, worker_rows.worker_id()
        self.stopping = threading.Event()

    def stop(self) -> None:
        self.stopping.set()

    def run(self) -> None:
        while not self.stopping.is_set():
            self._write(self._beat)
            self.stopping.wait(worker_rows.BEAT_SECONDS)
        self._write(lambda conn: worker_rows.leave(conn, self.id))

    def _beat(self, conn: Connection) -> None:
        worker_rows.beat(conn, self.id, self.queues, settings().device, devices=self.pool.usage())

    @staticmethod
    def _write(change) -> None:
        try:
            with transaction(durable=False) as conn:
                change(conn)
        except AnamorphError as error:
            log.warning("presence_not_written", error=error.detail)


@setup_logging.connect
def configure_logging(**_) -> None:
    logs.configure()
    for name in ("celery.worker.strategy", "celery.app.trace"):  # two lines for each micro-batch
        logging.getLogger(name).setLevel(logging.WARNING)


@celeryd_after_setup.connect
def start(instance, **_) -> None:
    """Starts slots, sweeper and presence beside Celery's own loop; they do not wait for the broker."""
    queues = sorted(instance.app.amqp.queues.consume_from)
    migrate()
    pool = DevicePool(() if queues == ["infer"] else None)
    for queue in (queue for queue in jobs.QUEUES if queue in queues):
        count = len(pool) if queue == "train" else 1
        slots.extend(Slot(queue, worker_rows.worker_id(), pool=pool) for _ in range(count))
    threads = [*slots, Presence(queues, pool)]
    if "infer" in queues:
        threads += [Pulse(worker_rows.worker_id(), queues), GoneListener(), Calibration()]
        threading.Thread(target=load_host, name="load-host", daemon=True).start()
    for thread in (*threads, Sweeper()):
        thread.start()
    worker_shutting_down.connect(lambda **_: ask_to_stop(threads), weak=False)
    atexit.register(wait_for_end, threads)


def load_host() -> None:
    """Imports torch before the first call, which would otherwise wait for seconds."""
    try:
        from workers.inference.host import lane

        Current.use(lane())
    except BaseException:
        log.exception("host_not_loaded")
        os._exit(1)  # calls would wait for ever; whoever started this process says why it ends


def ask_to_stop(threads: list[Slot | Presence]) -> None:
    """Lets jobs save and stop while Celery shuts down."""
    for thread in threads:
        thread.stop()


def wait_for_end(threads: list[Slot | Presence]) -> None:
    """Keeps the process alive, however Celery ended, until its jobs are back in the queue."""
    ask_to_stop(threads)
    for thread in threads:
        thread.join()
