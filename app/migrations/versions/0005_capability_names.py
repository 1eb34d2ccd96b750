"""Capabilities of models under their present names; cards keep the words they were published with."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NEW_NAMES = {
    "Scores": "Classifies",
    "Detects": "DetectsObjects",
    "Estimates": "Regresses",
    "Judges": "Discriminates",
    "JudgesPatches": "Discriminates",
    "Suspects": "DetectsAdversarial",
    "Truncates": "StyleBased",
    "MixesStyles": "StyleBased",
}
OLD_NAMES = {new: old for old, new in NEW_NAMES.items() if old not in ("JudgesPatches", "MixesStyles")}

models = sa.table("models", sa.column("id", sa.String), sa.column("capabilities", sa.JSON))


def rename(names: dict[str, str]) -> None:
    conn = op.get_bind()
    for row in conn.execute(sa.select(models.c.id, models.c.capabilities)).all():
        renamed = sorted({names.get(name, name) for name in row.capabilities})
        if renamed != sorted(row.capabilities):
            conn.execute(models.update().where(models.c.id == row.id).values(capabilities=renamed))


def upgrade() -> None:
    rename(NEW_NAMES)


def downgrade() -> None:
    rename(OLD_NAMES)
