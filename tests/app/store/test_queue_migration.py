"""Jobs that wait in a data folder of an earlier release move to the queue of their cost."""

from alembic import command
from alembic.config import Config
from sqlalchemy import select, text

from app.core.store.database import MIGRATIONS, make_engine, transaction
from app.core.store.tables import jobs

WAITING = (
    ("report", {}, "light", "report"),
    ("defence", {}, "light", "report"),
    ("oracle", {}, "light", "report"),
    ("dataset", {"model": "m", "operation": "encode"}, "light", "report"),
    ("dataset", {"upload": "u"}, "light", "light"),
    ("export", {}, "light", "light"),
    ("training", {}, "train", "train"),
)


def test_waiting_jobs_move_to_the_queue_of_their_cost(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path}/old.db")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    insert = text(
        "INSERT INTO jobs (id, tenant, kind, queue, spec, spec_sha256, state, attempt, failures, max_failures,"
        " run_after, rings, cancel_requested, last_event, created_at, published_at)"
        " VALUES (:id, 't', :kind, :queue, :spec, '', :state, 0, 0, 3, 0, 0, 0, 0, 0, 1)"
    )
    with transaction(engine) as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "0007")
        for number, (kind, spec, queue, _) in enumerate(WAITING):
            row = {"id": str(number), "kind": kind, "spec": str(spec).replace("'", '"'), "queue": queue}
            conn.execute(insert, row | {"state": "queued"})
        conn.execute(insert, {"id": "x", "kind": "report", "spec": "{}", "queue": "light", "state": "failed"})
        command.upgrade(config, "head")
        rows = conn.execute(select(jobs.c.id, jobs.c.queue, jobs.c.published_at, jobs.c.false_starts)).all()
    moved = [(queue, None if queue == "report" else 1.0, 0) for *_, queue in WAITING]
    assert [tuple(row[1:]) for row in sorted(rows)] == [*moved, ("light", 1.0, 0)]
    engine.dispose()
