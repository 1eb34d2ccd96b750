"""Engines, transactions, clock and migrations, on SQLite and PostgreSQL alike."""

import threading
import time

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text, update

from app.core.errors import StorageFull, Unavailable
from app.core.store import database
from app.core.store.database import clock, encode_json, make_engine, migrate, new_id, now, reading, transaction, upsert
from app.core.store.tables import metadata, workers

ROW = {"id": "w", "host": "h", "pid": 1, "queues": [], "models": [], "started_at": 1.0, "seen_at": 1.0}


def test_migrations_make_exactly_the_declared_tables(engine):
    with engine.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata) == []


def test_migrations_go_down_and_up_again(engine):
    with transaction(engine) as conn:
        config = Config()
        config.set_main_option("script_location", str(database.MIGRATIONS))
        config.attributes["connection"] = conn
        command.downgrade(config, "base")
        assert inspect(conn).get_table_names() == ["alembic_version"]
    migrate(engine)
    assert set(metadata.tables) <= set(inspect(engine).get_table_names())


def test_processes_that_migrate_at_once_do_not_disturb_each_other(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path}/new.db")
    threads = [threading.Thread(target=migrate, args=(engine,)) for _ in range(8)]
    failures = []
    threading.excepthook, before = lambda args: failures.append(args.exc_value), threading.excepthook
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    threading.excepthook = before
    engine.dispose()
    assert failures == []


def test_clock_runs_inside_a_transaction_and_agrees_with_this_host(engine):
    with transaction(engine) as conn:
        first = now(conn)
        time.sleep(0.05)
        assert 0.03 < now(conn) - first < 5
        assert abs(first - time.time()) < 5


def test_a_failed_transaction_leaves_nothing(engine):
    with pytest.raises(RuntimeError), transaction(engine) as conn:
        conn.execute(insert(workers).values(**ROW))
        raise RuntimeError
    with reading(engine) as conn:
        assert conn.execute(select(workers)).all() == []


def test_read_then_write_in_one_transaction_loses_no_update(engine):
    """Eight threads add 1 twenty times each; a deferred SQLite transaction would fail with BUSY here."""
    with transaction(engine) as conn:
        conn.execute(insert(workers).values(**ROW))

    def add():
        for _ in range(20):
            with transaction(engine, durable=False) as conn:
                pid = conn.execute(select(workers.c.pid).with_for_update()).scalar_one()
                conn.execute(update(workers).values(pid=pid + 1))

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as conn:
        assert conn.execute(select(workers.c.pid)).scalar_one() == 161


def test_reading_is_one_consistent_look(engine):
    with transaction(engine) as conn:
        conn.execute(insert(workers).values(**ROW))
    with reading(engine) as look:
        assert look.execute(select(workers.c.pid)).scalar_one() == 1
        with transaction(engine) as conn:
            conn.execute(update(workers).values(pid=2))
        assert look.execute(select(workers.c.pid)).scalar_one() == 1


def test_upsert_overwrites_and_json_takes_what_databases_refuse(engine):
    hostile = ["\0", "\ud800", "𝕏 é", float("nan"), {"x": float("inf")}, 1e308]
    with transaction(engine) as conn:
        upsert(conn, workers, ROW, ["id"])
        upsert(conn, workers, ROW | {"queues": hostile, "seen_at": clock()}, ["id"])
    with reading(engine) as conn:
        row = conn.execute(select(workers)).one()
    assert row.queues == ["\0", "\ud800", "𝕏 é", None, {"x": None}, 1e308]
    assert row.seen_at > 1e9


def test_json_is_ascii_and_has_no_nan():
    assert encode_json({"é": [float("-inf"), 1.5]}) == '{"\\u00e9":[null,1.5]}'


def test_ids_sort_by_time_and_are_version_7():
    first = new_id()
    time.sleep(0.002)
    second = new_id()
    assert first < second and first[14] == "7" and first[19] in "89ab"
    assert len({new_id() for _ in range(10_000)}) == 10_000


def test_a_full_disk_is_storage_full_and_passes_when_there_is_room(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path}/full.db", pool_size=1)
    migrate(engine)
    with engine.connect() as conn:
        pages = conn.execute(text("PRAGMA page_count")).scalar_one()
        conn.execute(text(f"PRAGMA max_page_count={pages + 1}"))
    with pytest.raises(StorageFull), transaction(engine) as conn:
        conn.execute(insert(workers).values(**ROW | {"queues": ["x" * 100_000]}))
    with engine.connect() as conn:
        conn.execute(text("PRAGMA max_page_count=1000000"))
    with transaction(engine) as conn:
        conn.execute(insert(workers).values(**ROW | {"queues": ["x" * 100_000]}))
    engine.dispose()


def test_a_locked_database_is_unavailable_not_a_crash(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path}/busy.db")
    migrate(engine)
    with engine.connect() as conn:
        conn.execute(text("PRAGMA busy_timeout=50"))
    with transaction(engine), engine.connect() as other:
        other.exec_driver_sql("PRAGMA busy_timeout=50")
        other.close()
        with pytest.raises(Unavailable), transaction(engine):
            pass
    engine.dispose()


def test_a_database_that_is_not_there_is_unavailable():
    engine = make_engine("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(Unavailable) as caught, reading(engine):
        pass
    assert caught.value.retry_after
    engine.dispose()


def test_other_databases_are_refused_with_a_sentence():
    with pytest.raises(ValueError, match="mysql"):
        make_engine("mysql://x/y")
