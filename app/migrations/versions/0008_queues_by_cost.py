"""A queue `report` for jobs of minutes, and whether an attempt of a job has begun."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

MOVED = ("report", "defence", "perturbation", "oracle")

jobs = sa.table(
    "jobs",
    *(sa.column(name, sa.String) for name in ("id", "kind", "queue", "state")),
    sa.column("spec", sa.JSON),
    sa.column("published_at", sa.Double),
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("false_starts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("begun_at", sa.Double))
    move(MOVED, "report")


def downgrade() -> None:
    move(("dataset", *MOVED), "light")
    op.drop_column("jobs", "begun_at")
    op.drop_column("jobs", "false_starts")


def move(kinds: tuple[str, ...], queue: str) -> None:
    """Moves the jobs of these kinds, and datasets that a model makes; those that wait are announced again."""
    conn = op.get_bind()
    active = jobs.c.state.in_(("queued", "running"))
    waiting = conn.execute(sa.select(jobs.c.id, jobs.c.spec).where(active, jobs.c.kind == "dataset")).all()
    derived = [row.id for row in waiting if "model" in row.spec or "operation" in row.spec]
    for which in (jobs.c.kind.in_(kinds), jobs.c.id.in_(derived)):
        conn.execute(jobs.update().where(which, active).values(queue=queue, published_at=None))
