"""The tables, the same for SQLite and PostgreSQL. Times are seconds since 1970 by the clock of the database."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

ID = String(36)
TENANT = String(64)
NAME = String(128)
DIGEST = String(64)


def Null() -> JSON:
    """A JSON column that stores None as SQL NULL, so that `IS NULL` works."""
    return JSON(none_as_null=True)


jobs = Table(
    "jobs",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("queue", String(32), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_sha256", DIGEST, nullable=False),
    Column("state", String(16), nullable=False),
    # attempt only grows and numbers the folders of blobs; max_failures limits failures
    Column("attempt", Integer, nullable=False, default=0),
    Column("failures", Integer, nullable=False, default=0),
    Column("false_starts", Integer, nullable=False, default=0, server_default="0"),  # attempts that never began
    Column("max_failures", Integer, nullable=False),
    Column("token", String(32)),
    Column("worker", NAME),
    Column("lease_until", Double),
    Column("run_after", Double, nullable=False),
    Column("published_at", Double),
    Column("rings", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("deadline", Double),
    Column("progress", Null()),
    Column("checkpoint", Null()),
    Column("result", Null()),
    Column("error", Null()),
    Column("last_event", Integer, nullable=False, default=0),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),  # of the first attempt
    Column("claimed_at", Double),  # of the latest attempt
    Column("begun_at", Double),  # first heartbeat of the latest attempt
    Column("finished_at", Double),
    CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'canceled')", name="state"),
    CheckConstraint("(state = 'running') = (token IS NOT NULL)", name="token"),
    Index(None, "state", "queue", "tenant", "id"),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "state", "id"),
    Index(None, "tenant", "kind", "id"),
    Index(None, "tenant", "kind", "state", "id"),
    Index(None, "tenant", "queue", "claimed_at"),
    # few jobs keep checkpoints, and cleanup asks for the oldest of them
    Index(
        "ix_jobs_checkpoint",
        "finished_at",
        sqlite_where=text("checkpoint IS NOT NULL"),
        postgresql_where=text("checkpoint IS NOT NULL"),
    ),
)

ended_jobs = Table(
    "ended_jobs",
    metadata,
    # how many jobs have ended, by kind and state: rows are only added, so that no two endings wait for each other;
    # the number is the sum of `change`, and cleanup replaces the rows by their sums
    Column("id", ID, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("change", Integer, nullable=False),
)

ALARMS = ("alarm", "alarm_treated", "alarm_cleared")
"""Kinds of events of the monitor of a training."""
# the same text in the index and in the query, so that SQLite and PostgreSQL use the index
IS_ALARM = text(f"kind IN {ALARMS}")

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("attempt", Integer, nullable=False),  # of the writer
    Column("writer", String(16)),  # a digest of the writer's token; null if it held no lease
    Column("kind", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    # lists of jobs read the alarms of each, which are few among many events
    Index("ix_job_events_alarm", "job_id", "seq", sqlite_where=IS_ALARM, postgresql_where=IS_ALARM),
)

job_metrics = Table(
    "job_metrics",
    metadata,
    Column("job_id", ID, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("images", BigInteger, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("values", JSON, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", TENANT, primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", DIGEST, nullable=False),
    Column("job_id", ID),
    Column("status", Integer),
    Column("body", Null()),
    Column("created_at", Double, nullable=False),
    Index(None, "created_at"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", NAME, primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("queues", JSON, nullable=False),
    Column("device", String(64)),
    Column("devices", Null()),  # each device with its jobs
    Column("models", JSON, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("name", NAME, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("layout", String(32), nullable=False),
    Column("facts", JSON, nullable=False),
    Column("source", NAME, nullable=False),
    Column("licence", String(255)),
    Column("attribution", String(1000)),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("deleted_at", Double),
    # a name is free again once its dataset is deleted
    Index(
        "uq_datasets_tenant_name",
        "tenant",
        "name",
        unique=True,
        sqlite_where=text("deleted_at IS NULL"),
        postgresql_where=text("deleted_at IS NULL"),
    ),
    Index(None, "tenant", "id"),
    Index(None, "digest"),
)

models = Table(
    "models",
    metadata,
    Column("id", ID, primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("digest", DIGEST, nullable=False),
    Column("name", NAME, nullable=False),
    Column("family", String(64), nullable=False),
    Column("dataset", NAME),
    Column("dataset_digest", DIGEST),
    Column("config", JSON, nullable=False),
    Column("seed", BigInteger),
    Column("metrics", JSON, nullable=False),
    Column("card", JSON, nullable=False),
    Column("capabilities", JSON, nullable=False),
    Column("job_id", ID),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("measurement", Null()),
    Index(None, "tenant", "digest", unique=True),
    Index(None, "tenant", "id"),
    Index(None, "digest"),
)

model_names = Table(
    "model_names",
    metadata,
    Column("tenant", TENANT, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("digest", DIGEST, nullable=False),
    Column("updated_at", Double, nullable=False),
)

quiz_answers = Table(
    "quiz_answers",
    metadata,
    Column("tenant", TENANT, primary_key=True),
    Column("person", String(16), primary_key=True),  # an API key's id, or "local"
    Column("model", DIGEST, primary_key=True),
    Column("quiz", String(16), primary_key=True),
    Column("answer", Integer, nullable=False),
    Column("correct", Boolean, nullable=False),
    Column("discriminator", Boolean),  # whether the discriminator was right; null without one
    Column("created_at", Double, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", TENANT, nullable=False),
    Column("name", NAME, nullable=False),
    Column("secret_sha256", DIGEST, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
    Column("last_used_at", Double),
)

perturbations = Table(
    "perturbations",
    metadata,
    Column("tenant", TENANT, primary_key=True),
    Column("name", NAME, primary_key=True),
    Column("digest", DIGEST, nullable=False),
    Column("model_digest", DIGEST, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("job_id", ID),
    Column("created_at", Double, nullable=False),
    Index(None, "digest"),
)
