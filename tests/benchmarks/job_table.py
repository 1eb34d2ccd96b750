"""Lists, scrapes, claims and cleanup beside many job rows: `python -m tests.benchmarks.job_table [--rows 1000000]`.

Fills the table of jobs of a new database (SQLite in a temporary folder, or PostgreSQL with --database URL) and prints
the CPU time of this process for each query, the least of three. Exits with 1 if one takes more than the limit.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, insert, select, text

from app.api.http.metrics import Metrics
from app.api.jobs import views
from app.core.calls.client import CallClient
from app.core.jobs import cleanup
from app.core.jobs import state as jobs
from app.core.settings import settings
from app.core.store import datasets as dataset_rows
from app.core.store import models as model_rows
from app.core.store.database import engine, migrate, new_id, reading, transaction
from app.core.store.tables import jobs as table

LIMIT_MS = 50
TENANTS = [f"tenant-{number}" for number in range(50)]
KINDS = ("operation", "dataset", "training", "report", "export")
SPEC = {"family": "vae", "dataset": "digits", "name": "model", "config": {"latent_dim": 32}, "seed": 7}


def rows(count: int, queued: int) -> Iterator[dict[str, Any]]:
    """Ended jobs of 50 tenants; the last `queued` wait. One job in 100,000 is of a rare kind."""
    rng = random.Random(0)
    start = time.time() - count
    for number in range(count):
        tenant, kind = rng.choice(TENANTS), rng.choice(KINDS)
        state = rng.choice(("succeeded",) * 8 + ("failed", "canceled"))
        row = {
            "tenant": tenant,
            "kind": "perturbation" if number % 100_000 == 0 else kind,
            "state": state,
            "finished_at": start + number + 5,
            "token": None,
            "checkpoint": {"key": "x"} if kind == "training" and number > count - 2000 else None,
        }
        if number >= count - queued:
            row |= {"state": "queued", "finished_at": None}
        elif number >= count - queued - 20:
            row |= {"state": "running", "finished_at": None, "token": "0" * 32}
        yield row | {
            "id": _id(start + number, rng),
            "queue": jobs.queue_of(row["kind"]),
            "spec": SPEC,
            "spec_sha256": "0" * 64,
            "attempt": 1,
            "failures": 0,
            "max_failures": 3,
            "run_after": start + number,
            "created_at": start + number,
            "started_at": start + number + 1,
            "claimed_at": start + number + 1,
            "lease_until": time.time() + 1e6 if row["state"] == "running" else None,
            "published_at": time.time(),
        }


def _id(at: float, rng: random.Random) -> str:
    digits = f"{int(at * 1000):012x}7{rng.getrandbits(12):03x}8{rng.getrandbits(60):015x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def fill(bind: Engine, count: int, queued: int) -> None:
    batch: list[dict[str, Any]] = []
    for row in rows(count, queued):
        batch.append(row)
        if len(batch) == 20_000:
            _insert(bind, batch)
            batch.clear()
    _insert(bind, batch)
    with transaction(bind) as conn:
        conn.execute(text("ANALYZE" if bind.dialect.name == "postgresql" else "PRAGMA optimize"))


def _insert(bind: Engine, batch: list[dict[str, Any]]) -> None:
    with transaction(bind, durable=False) as conn:
        if batch:
            conn.execute(insert(table), batch)


def queries(bind: Engine) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    tenant = TENANTS[0]
    with reading(bind) as conn:
        middle = conn.execute(
            select(table.c.id).where(table.c.tenant == tenant).order_by(table.c.id).offset(5000).limit(1)
        ).scalar()
        waiting = conn.execute(select(table.c.id).where(table.c.state == "queued").limit(1)).scalar()
    scrape = Metrics(CallClient("redis://127.0.0.1:1"))

    def page(**filters: Any) -> Callable[[], Any]:
        def run() -> int:
            with reading(bind) as conn:
                found, _ = jobs.list_jobs(conn, tenant, limit=100, **filters)
                return len(views.many(conn, found))

        return run

    def read(query: Callable) -> Callable[[], Any]:
        def run() -> Any:
            with reading(bind) as conn:
                return query(conn)

        return run

    def claim() -> None:
        with transaction(bind, durable=False) as conn:
            assert jobs.claim_oldest(conn, "train", "bench", 1e6)

    return {
        "GET /v1/jobs": page(),
        "GET /v1/jobs, middle page": page(cursor=middle),
        **{f"GET /v1/jobs?status={state}": page(state=state) for state in jobs.STATES},
        "GET /v1/jobs?kind=perturbation (rare)": page(kind="perturbation"),
        "GET /v1/jobs?kind=training&status=failed": page(kind="training", state="failed"),
        "GET /v1/jobs?kind=perturbation&status=queued": page(kind="perturbation", state="queued"),
        "GET /v1/jobs/{id}, queued": read(lambda conn: views.one(conn, _row(conn, waiting))),
        "GET /metrics": scrape.text,
        "active jobs of a tenant (quota)": read(lambda conn: jobs.active_count(conn, tenant)),
        "next due": read(lambda conn: jobs.next_due(conn, "train")),
        "claim": claim,
        "look of the sweeper": read(jobs.to_sweep),
        "old checkpoints (cleanup)": read(cleanup.outlived),
        "model of this name in training": read(lambda conn: model_rows.training_of(conn, tenant, "none")),
        "dataset of this name in import": read(lambda conn: dataset_rows.importing(conn, tenant, "none")),
        "GET /v1/datasets": read(lambda conn: dataset_rows.page(conn, tenant, 100)),
        "stored bytes (quota)": read(lambda conn: dataset_rows.stored_bytes(conn, tenant)),
        "accept": lambda: _accept(bind, tenant),
    }


def _row(conn, job_id: str) -> dict[str, Any]:
    return dict(conn.execute(select(table).where(table.c.id == job_id)).mappings().one())


def _accept(bind: Engine, tenant: str) -> None:
    with transaction(bind, durable=False) as conn:
        jobs.accept(conn, tenant=f"{tenant}-new", kind="training", spec=SPEC, job_id=new_id())


def milliseconds(query: Callable[[], Any]) -> tuple[float, float]:
    """(CPU of this process, wall): the least of three runs. With PostgreSQL the wall time holds the server's work."""
    cpu, wall = [], []
    for _ in range(3):
        at, clock = time.process_time(), time.perf_counter()
        query()
        cpu.append(time.process_time() - at)
        wall.append(time.perf_counter() - clock)
    return min(cpu) * 1000, min(wall) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queued", type=int, default=2_000)
    parser.add_argument("--database", default="")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ANAMORPH_DATA_DIR"] = folder
        os.environ["DATABASE_URL"] = options.database
        settings.cache_clear()
        engine.cache_clear()
        bind = engine()
        migrate(bind)
        fill(bind, options.rows, options.queued)
        print(f"{options.rows:,} jobs, {options.queued:,} queued, {bind.dialect.name}")
        print(f"{'query':<48} {'CPU ms':>9} {'wall ms':>9}")
        results = {}
        for name, query in queries(bind).items():
            results[name] = milliseconds(query)
            print(f"{name:<48} {results[name][0]:9.1f} {results[name][1]:9.1f}", flush=True)
        bind.dispose()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    column = 0 if not options.database else 1
    slow = [name for name, times in results.items() if times[column] > LIMIT_MS]
    print(f"more than {LIMIT_MS} ms: {', '.join(slow) or 'none'}")
    return bool(slow)


if __name__ == "__main__":
    raise SystemExit(main())
