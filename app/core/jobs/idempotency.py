"""Idempotency keys: a request sent twice makes one job. The key is written in the transaction of the job."""

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from app.core.errors import IdempotencyMismatch
from app.core.settings import settings
from app.core.store.database import clock
from app.core.store.tables import idempotency as keys


@dataclass(frozen=True)
class Replay:
    """The result of the first request with this key."""

    job_id: str | None
    status: int | None
    body: Any


def claim_key(conn: Connection, tenant: str, key: str, fingerprint: str) -> Replay | None:
    """The result of the first request with the key; None for a new key, whose result the caller must `remember`.

    Waits for another transaction that holds the key. Raises IdempotencyMismatch for a different request.
    """
    mine = (keys.c.tenant == tenant) & (keys.c.key == key)
    fingerprint = hashlib.sha256(fingerprint.encode()).hexdigest()
    conn.execute(delete(keys).where(mine & (keys.c.created_at < clock() - settings().idempotency_hours * 3600)))
    statement = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(keys)
    row = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "created_at": clock()}
    if conn.execute(statement.values(**row).on_conflict_do_nothing().returning(keys.c.key)).first():
        return None
    first = conn.execute(select(keys).where(mine)).one()
    if first.fingerprint != fingerprint:
        raise IdempotencyMismatch(
            "The idempotency key was used before for a request with other content.",
            field="Idempotency-Key",
            remedy="Use a new key for each new request, and the same key only to repeat a request.",
        )
    return Replay(first.job_id, first.status, first.body)


def is_known(conn: Connection, tenant: str, key: str) -> bool:
    """Whether a request with this key was accepted already; only a hint, as `claim_key` decides."""
    fresh = keys.c.created_at >= clock() - settings().idempotency_hours * 3600
    mine = (keys.c.tenant == tenant) & (keys.c.key == key)
    return conn.execute(select(keys.c.key).where(mine, fresh)).first() is not None


def remember(
    conn: Connection, tenant: str, key: str, *, job_id: str | None = None, status: int | None = None, body: Any = None
) -> None:
    """Stores the result of the request, to be replayed."""
    mine = (keys.c.tenant == tenant) & (keys.c.key == key)
    conn.execute(update(keys).where(mine).values(job_id=job_id, status=status, body=body))


def forget_old(conn: Connection) -> int:
    """Deletes expired keys and returns their number."""
    old = keys.c.created_at < clock() - settings().idempotency_hours * 3600
    rows = select(keys.c.tenant, keys.c.key).where(old).order_by(keys.c.tenant, keys.c.key)
    conn.execute(rows.with_for_update()).all()  # in one order, as other sweepers do this too
    return conn.execute(delete(keys).where(old)).rowcount
