"""Bugs that prove the checker: each takes one guard away, in the drill's own processes and tests only."""

import threading
import time

from sqlalchemy import update

from app.core.jobs import events, idempotency, queries, state
from app.core.store import blobs
from app.core.store.tables import idempotency as keys
from app.core.store.tables import jobs


def no_token_in_events(patch) -> None:
    """An event is written for whoever asks."""
    real = events._append
    patch(
        events, "_append", lambda conn, job, kind, data, token, by=None: real(conn, job, kind, data, None, token or by)
    )


def no_token_in_held_writes(patch) -> None:
    """Progress, checkpoints and ends are written while anybody holds the job."""
    patch(state, "held_by", lambda job_id, token: (jobs.c.id == job_id) & (jobs.c.state == "running"))


def claim_of_any_job(patch) -> None:
    """A running job counts as due."""

    def due():
        return jobs.c.state.in_(("queued", "running"))

    patch(state, "due", due)
    patch(queries, "due", due)


def blob_after_pointer(patch) -> None:
    """Checkpoints are stored in the background."""
    real = blobs.put

    def put(key, data, create_only=True):
        def later():
            time.sleep(0.5)
            real(key, data, create_only)

        if "/checkpoint-" in key:
            threading.Thread(target=later, daemon=True).start()
        else:
            real(key, data, create_only)

    patch(blobs, "put", put)


def no_replay(patch) -> None:
    """A key that was used before counts as new."""
    real = idempotency.claim_key

    def claim_key(conn, tenant, key, fingerprint):
        conn.execute(keys.delete().where(keys.c.tenant == tenant, keys.c.key == key))
        return real(conn, tenant, key, fingerprint)

    patch(idempotency, "claim_key", claim_key)
    patch(state, "claim_key", claim_key)


def zombie_checkpoint(patch) -> None:
    """The pointer to resume from is moved by whoever asks."""

    def add_checkpoint(conn, job_id, token, ref):
        conn.execute(update(jobs).where(jobs.c.id == job_id).values(checkpoint=ref))
        events.append(conn, job_id, "checkpoint", ref, by=token)

    patch(state, "add_checkpoint", add_checkpoint)


PLANTS = {
    "no-token-in-events": no_token_in_events,
    "no-token-in-held-writes": no_token_in_held_writes,
    "claim-of-any-job": claim_of_any_job,
    "blob-after-pointer": blob_after_pointer,
    "no-replay": no_replay,
    "zombie-checkpoint": zombie_checkpoint,
}
EXPECTED = {
    "no-token-in-events": "zombie write",
    "no-token-in-held-writes": "zombie write",
    "claim-of-any-job": "illegal claim",
    "blob-after-pointer": "pointer before blob",
    "no-replay": "double",
    "zombie-checkpoint": "zombie checkpoint",
}
"""The kind of fault that each of them must be reported as."""
