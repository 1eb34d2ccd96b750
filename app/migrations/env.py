"""Alembic's entry: runs the versions on the connection that `migrate()` hands over, inside its transaction."""

from alembic import context

from app.core.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
)
context.run_migrations()
