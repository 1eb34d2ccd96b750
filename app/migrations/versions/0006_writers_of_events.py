"""Who wrote an event of a job: a digest of the token. Events from before stay without one."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job_events", sa.Column("writer", sa.String(16)))


def downgrade() -> None:
    op.drop_column("job_events", "writer")
