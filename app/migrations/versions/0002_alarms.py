"""An index over the events that are alarms."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

IS_ALARM = sa.text("kind IN ('alarm', 'alarm_treated', 'alarm_cleared')")


def upgrade() -> None:
    op.create_index(
        "ix_job_events_alarm",
        "job_events",
        ["job_id", "seq"],
        sqlite_where=IS_ALARM,
        postgresql_where=IS_ALARM,
    )


def downgrade() -> None:
    op.drop_index("ix_job_events_alarm", "job_events")
