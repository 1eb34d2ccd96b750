"""The measurement of a published model, which runs after its training has ended."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("measurement", sa.JSON))


def downgrade() -> None:
    op.drop_column("models", "measurement")
