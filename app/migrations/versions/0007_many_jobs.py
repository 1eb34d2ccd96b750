"""Indexes for lists of many jobs, and how many have ended."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

jobs = sa.table("jobs", sa.column("kind", sa.String), sa.column("state", sa.String))
CHECKPOINT = sa.text("checkpoint IS NOT NULL")


def upgrade() -> None:
    for columns in (["tenant", "state", "id"], ["tenant", "kind", "id"], ["tenant", "kind", "state", "id"]):
        op.create_index(op.f(f"ix_jobs_{'_'.join(columns)}"), "jobs", columns)
    op.create_index("ix_jobs_checkpoint", "jobs", ["finished_at"], sqlite_where=CHECKPOINT, postgresql_where=CHECKPOINT)
    op.drop_index(op.f("ix_jobs_tenant_state"), "jobs")
    ended = op.create_table(
        "ended_jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("change", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ended_jobs")),
    )
    count = sa.select(jobs.c.kind, jobs.c.state, sa.func.count()).group_by(jobs.c.kind, jobs.c.state)
    for kind, state, number in op.get_bind().execute(count).all():
        if state not in ("queued", "running"):
            row = {"id": str(uuid.uuid4()), "kind": kind, "state": state, "change": number}
            op.get_bind().execute(ended.insert().values(**row))


def downgrade() -> None:
    op.drop_table("ended_jobs")
    op.create_index(op.f("ix_jobs_tenant_state"), "jobs", ["tenant", "state"])
    op.drop_index("ix_jobs_checkpoint", "jobs")
    for columns in (["tenant", "state", "id"], ["tenant", "kind", "id"], ["tenant", "kind", "state", "id"]):
        op.drop_index(op.f(f"ix_jobs_{'_'.join(columns)}"), "jobs")
