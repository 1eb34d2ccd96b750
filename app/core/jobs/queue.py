"""The Celery object, and rings for durable jobs (an id). Micro-batches of calls go the same way, see `calls`.

The broker never holds the only copy of anything promised, so that every message may be lost or delivered twice.
"""

import structlog
from celery import Celery

from app.core.settings import settings

log = structlog.get_logger(__name__)

celery = Celery("anamorph")


@celery.add_defaults
def _configuration() -> dict:
    return {
        "broker_url": settings().broker_url,
        # early ack: with acks_late a task longer than the visibility timeout is delivered again, for ever
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json", "msgpack"],
        "task_default_queue": "light",
        "task_publish_retry": False,
        # prefetch stays on: without it a worker looks for its next message once a second, and calls wait that long;
        # a prefetched notification costs nothing: the table decides which job runs
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 25,
            # one quick retry: with kombu's defaults a notification to a dead broker takes 6 seconds
            "max_retries": 1,
            "interval_start": 0.1,
        },
    }


def notify(job_id: str, queue: str) -> bool:
    """Tells the workers of `queue` that there is something to do. Best effort: the sweeper rings again."""
    try:
        celery.send_task("workers.main.run_job", [job_id], queue=queue)
    except Exception as error:  # kombu lets several libraries' errors through
        log.warning("ring_failed", job=job_id, queue=queue, error=type(error).__name__)
        return False
    return True
