"""Schema versions, applied by `app.core.store.database.migrate()`."""
