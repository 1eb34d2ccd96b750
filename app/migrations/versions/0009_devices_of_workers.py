"""The devices of each worker, and the jobs that use them."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workers", sa.Column("devices", sa.JSON))


def downgrade() -> None:
    op.drop_column("workers", "devices")
