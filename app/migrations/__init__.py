"""Schema versions, applied by `app.core.database.migrate()`."""
