"""The database: engines, transactions, clock, migrations. SQLite (one machine) or PostgreSQL, with the same SQL."""

import json
import math
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Double,
    Engine,
    Table,
    create_engine,
    event,
    exc,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

from app.core.errors import AnamorphError, StorageDamaged, StorageFull, Unavailable
from app.core.settings import settings

WAIT_SECONDS = 10
"""How long a transaction waits for the write lock of SQLite."""
MIGRATIONS = Path(__file__).parents[2] / "migrations"
TRY_AGAIN = ("40001", "40P01")
"""PostgreSQL's states of transactions that were rolled back because of others: serialisation failure, deadlock."""
T = TypeVar("T")


class RolledBack(Unavailable):
    """The database rolled the transaction back because of another one; run it again."""


class clock(GenericFunction):
    """Seconds since 1970 by the clock of the database, the only clock that leases are compared with."""

    type = Double()
    inherit_cache = True
    name = "anamorph_clock"


@compiles(clock, "sqlite")
def _clock_sqlite(element, compiler, **options):
    return "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') needs SQLite 3.42


@compiles(clock, "postgresql")
def _clock_postgresql(element, compiler, **options):
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"  # now() would be the transaction's start


def now(conn: Connection) -> float:
    return conn.execute(select(clock())).scalar_one()


def new_id() -> str:
    """A UUIDv7: ids sort by creation, so a page cursor is an id. RFC 9562, method 3: 12 bits hold part of the ms."""
    milliseconds, rest = divmod(time.time_ns(), 1_000_000)
    fraction, random = rest * 4096 // 1_000_000, int.from_bytes(os.urandom(8)) >> 2
    return str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | random))


def encode_json(value: Any) -> str:
    """JSON in ASCII. NaN and infinities, such as a diverged loss, become null."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def make_engine(url: str, pool_size: int = 10) -> Engine:
    """A new engine; use the shared `engine()` in most code."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite_engine(parsed, pool_size)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
        return create_engine(
            parsed,
            json_serializer=encode_json,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5},
        )
    raise ValueError(
        f"DATABASE_URL starts with {parsed.drivername!r}; sqlite:///file and postgresql://... are supported."
    )


def _sqlite_engine(url, pool_size: int) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        json_serializer=encode_json,
        pool_size=pool_size,
        max_overflow=pool_size,
        connect_args={"timeout": WAIT_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connect(connection, _record):
        connection.isolation_level = None  # the driver must not send BEGIN by itself
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            f"busy_timeout={1000 * WAIT_SECONDS}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(conn):
        options = conn.get_execution_options()
        if not options.get("writes"):
            conn.exec_driver_sql("BEGIN")
            return
        conn.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options['durable'] else 'NORMAL'}")
        # a deferred transaction that reads first and then writes fails at once with BUSY, whatever the timeout
        conn.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def sqlite_file() -> Path | None:
    """The file of the configured database; None on PostgreSQL."""
    url = make_url(settings().database_url)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


@lru_cache
def engine() -> Engine:
    """The engine of this process for the configured database."""
    return make_engine(settings().database_url, settings().database_pool)


@contextmanager
def transaction(
    bind: Engine | None = None, *, durable: bool = True, wait_seconds: float | None = None
) -> Iterator[Connection]:
    """One writing transaction: commits at the end, rolls back on an error.

    `durable=False` lets SQLite postpone the fsync (60 times faster); a power cut may then undo the last of them.
    `wait_seconds`: how long to wait for other writers. Default: WAIT_SECONDS with SQLite, no limit with PostgreSQL.
    """
    with _translated(), (bind or engine()).connect() as conn:
        conn = conn.execution_options(writes=True, durable=durable)
        with _waiting(conn, wait_seconds), conn.begin():
            if wait_seconds and conn.dialect.name == "postgresql":
                conn.execute(text(f"SET LOCAL statement_timeout = {round(1000 * wait_seconds)}"))
            yield conn


@contextmanager
def _waiting(conn: Connection, seconds: float | None) -> Iterator[None]:
    """Waits this long for the write lock of SQLite inside."""
    if not seconds or conn.dialect.name != "sqlite":
        yield
        return
    raw = conn.connection.dbapi_connection
    raw.execute(f"PRAGMA busy_timeout={round(1000 * seconds)}").close()
    try:
        yield
    finally:
        raw.execute(f"PRAGMA busy_timeout={1000 * WAIT_SECONDS}").close()


def retried(change: Callable[[Connection], T], bind: Engine | None = None, *, durable: bool = True) -> T:
    """Runs `change` in a transaction, and once more if it was rolled back because of another transaction."""
    try:
        with transaction(bind, durable=durable) as conn:
            return change(conn)
    except RolledBack:
        with transaction(bind, durable=durable) as conn:
            return change(conn)


@contextmanager
def reading(bind: Engine | None = None) -> Iterator[Connection]:
    """One consistent view of the database; writers neither block it nor are blocked by it."""
    with _translated(), (bind or engine()).connect() as conn:
        conn = conn.execution_options(
            **({} if conn.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"})
        )
        with conn.begin():
            yield conn


@contextmanager
def _translated() -> Iterator[None]:
    """Translates failures of the database into errors for clients; errors of statements are not changed."""
    try:
        yield
    except (exc.DatabaseError, sqlite3.DatabaseError) as error:
        public = _public(error)
        if public is None:
            raise
        raise public from error
    except exc.TimeoutError as error:
        raise Unavailable("All database connections are in use.", retry_after=1) from error


DAMAGED = ("malformed", "not a database")
FORBIDDEN = ("readonly database", "unable to open database file", "access permission denied")


def _public(error: exc.DatabaseError | sqlite3.DatabaseError) -> AnamorphError | None:
    """The error that a client sees; None for errors of statements."""
    cause = getattr(error, "orig", error)
    message, kinds = str(cause).lower(), (exc.OperationalError, sqlite3.OperationalError)
    if any(words in message for words in DAMAGED) and isinstance(cause, sqlite3.Error):
        remedy = "The administrator should check the disk, then restore a backup: `anamorph restore`."
        return StorageDamaged("The database file is damaged.", remedy=remedy)
    if not isinstance(error, kinds):
        return None
    state = getattr(cause, "sqlstate", "")
    if state in TRY_AGAIN:
        return RolledBack("The database was busy with another request.", retry_after=1)
    if "disk is full" in message or "no space left" in message or state == "53100":
        return StorageFull("The database has no space left.", remedy="Free disk space and retry.")
    if "no such table" in message or "no such column" in message:  # SQLite's word for a programming error
        return None
    if any(words in message for words in FORBIDDEN):
        remedy = "The administrator must make the data folder readable and writable for the service."
        return Unavailable("The database file cannot be opened or written.", remedy=remedy, retry_after=30)
    if "disk i/o error" in message:
        return Unavailable("The disk of the database reports an error.", retry_after=5)
    if "is locked" in message:
        return Unavailable("The database is locked by another process.", retry_after=2)
    return Unavailable("The database does not answer.", retry_after=2)


def upsert(conn: Connection, table: Table, row: dict[str, Any] | list[dict[str, Any]], key: list[str]) -> None:
    """Inserts `row`, or overwrites the row with the same `key` columns. Several rows at once have the same columns."""
    insert = (sqlite if conn.dialect.name == "sqlite" else postgresql).insert(table)
    first = row[0] if isinstance(row, list) else row
    rest = {name: insert.excluded[name] for name in first if name not in key}
    if isinstance(row, list):
        conn.execute(insert.on_conflict_do_update(index_elements=key, set_=rest), row)
    else:
        conn.execute(insert.values(**row).on_conflict_do_update(index_elements=key, set_=rest))


def migrate(bind: Engine | None = None) -> None:
    """Migrates the schema to the newest revision. Several processes may do so at the same time."""
    with transaction(bind) as conn:
        upgrade(conn)


def upgrade(conn: Connection, revision: str = "head") -> None:
    """Migrates the schema to `revision` in the caller's transaction."""
    from alembic import command  # a quarter of a second that a job's process need not spend
    from alembic.config import Config

    if conn.dialect.name == "postgresql":
        conn.execute(text("SELECT pg_advisory_xact_lock(4242424242)"))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = conn
    command.upgrade(config, revision)
