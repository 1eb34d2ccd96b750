"""Every setting of the service, read from the environment only here; the command line sets the same variables."""

from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.core.oracles import OracleSetting

MiB, GiB = 1 << 20, 1 << 30


class Settings(BaseSettings):
    """`DATABASE_URL`, `BROKER_URL` and `BLOBS_URL` have the usual names; every other field is `ANAMORPH_<FIELD>`."""

    model_config = SettingsConfigDict(
        env_prefix="ANAMORPH_", env_ignore_empty=True, extra="ignore", populate_by_name=True, frozen=True
    )

    # storage: an empty URL means the embedded part in data_dir
    data_dir: Path = Path("anamorph-data")
    database_url: str = Field("", validation_alias="DATABASE_URL")
    broker_url: str = Field("", validation_alias="BROKER_URL")
    blobs_url: str = Field("", validation_alias="BLOBS_URL")
    blob_cache_bytes: int = Field(20 * GiB, gt=0)
    database_pool: int = Field(10, ge=1)

    # the web front
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    public_url: str = ""
    allowed_hosts: list[str] = ["*"]
    allowed_origins: list[str] = []
    require_keys: bool = False
    bootstrap_key: SecretStr | None = None
    log_level: str = "info"
    log_json: bool = False

    # limits of connections
    max_connections: int = Field(8192, ge=1)
    max_connections_per_address: int = Field(4096, ge=1)
    max_header_bytes: int = Field(64 << 10, ge=1024)
    header_timeout_seconds: float = Field(10, gt=0)
    body_timeout_seconds: float = Field(20, gt=0)

    # limits of requests
    max_body_bytes: int = Field(2 * GiB, gt=0)
    max_model_bytes: int = Field(1 * GiB, gt=0)
    max_json_bytes: int = Field(32 * MiB, gt=0)
    max_image_bytes: int = Field(20 * MiB, gt=0)
    max_pixels: int = Field(16_000_000, gt=0)
    call_pixels: int = Field(100_000_000, gt=0)  # of all images of a call, counted by what decoding them costs
    job_pixels: int = Field(2_000_000_000, gt=0)
    max_side: int = Field(8192, gt=0)
    max_archive_members: int = Field(200_000, gt=0)
    max_archive_bytes: int = Field(8 * GiB, gt=0)
    rate_limit: str = "6000/minute"
    compute_seconds_per_minute: float | None = Field(120, gt=0)
    max_jobs_per_tenant: int = Field(1000, ge=1)
    max_running_jobs_per_tenant: int = Field(16, ge=1)
    max_job_seconds: float = Field(7 * 86_400, gt=0)
    max_job_seconds_per_day: float | None = Field(None, gt=0)
    max_passes_per_job: int = Field(200_000_000, gt=0)
    max_bytes_per_tenant: int = Field(100 * GiB, gt=0)
    idempotency_hours: float = Field(24, gt=0)

    # durable jobs; 0 ready_seconds: as long as the processes live and work
    ready_seconds: float = Field(0, ge=0)
    lease_seconds: float = Field(60, gt=0)  # well above the start of a Python process on a busy machine
    sweep_seconds: float = Field(1, gt=0)
    max_failures: int = Field(3, ge=1)
    cancel_grace_seconds: float = Field(20, gt=0)
    release_grace_seconds: float = Field(60, gt=0)
    checkpoint_seconds: float = Field(30, gt=0)
    checkpoint_bytes: int = Field(256 * MiB, ge=0)
    checkpoint_days: float = Field(7, gt=0)
    job_niceness: int = Field(10, ge=0, le=19)
    warm_start: bool = True
    job_memory_bytes: int | None = Field(None, gt=0)

    # calls: image in, image out while the client waits
    call_timeout_seconds: float = Field(30, gt=0)
    call_queue_limit: int = Field(2048, ge=1)
    call_batch: int = Field(64, ge=1)
    calls_in_flight: int = Field(2, ge=1)
    slow_call_threads: int = Field(4, ge=1)
    call_wait_seconds: float = Field(5, gt=0)
    slow_call_timeout_seconds: float = Field(120, gt=0)
    slow_calls_in_flight: int = Field(8, ge=1)

    # sealed child processes for foreign graphs and files (workers/sandbox): memory and longest call of each
    sandbox_bytes: int = Field(2 * GiB, ge=256 * MiB)
    sandbox_seconds: float = Field(60, gt=0)

    # remote models that may be attacked: name -> URL or object (app/core/oracles.py)
    oracles: dict[str, OracleSetting] = {}

    # compute; 0 threads means "as many as there are cores, less those that answer requests"
    device: str = "auto"
    devices: str = ""  # of the jobs of this worker, comma-separated; empty: all GPUs
    executor: Literal["torch", "onnx"] = "torch"
    train_threads: int = Field(0, ge=0)
    infer_threads: int = Field(0, ge=0)
    resident_bytes: int = Field(2 * GiB, gt=0)

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @model_validator(mode="before")
    @classmethod
    def _plain_redis(cls, values: dict) -> dict:
        """Valkey has the protocol of Redis, and kombu knows only that name."""
        for key in ("BROKER_URL", "broker_url"):
            if str(values.get(key, "")).startswith("valkey"):
                values[key] = "redis" + values[key].removeprefix("valkey")
        return values

    @model_validator(mode="after")
    def _embedded(self) -> "Settings":
        folder = quote(str(self.data_dir))  # the name of a folder may have characters with a meaning in URLs
        for field, default in {
            "database_url": f"sqlite:///{folder}/anamorph.db",
            "broker_url": f"redis+socket://{folder}/broker.sock",
            "blobs_url": f"file://{folder}/blobs",
        }.items():
            if not getattr(self, field):
                object.__setattr__(self, field, default)  # the only write to the frozen model
        return self

    @cached_property
    def call_images(self) -> int:
        """Maximum images of one call, sent or returned; more is a job."""
        return 4 * self.call_batch

    @property
    def redis_url(self) -> str:
        """The URL of the broker as redis-py writes a unix socket."""
        return self.broker_url.replace("redis+socket://", "unix://", 1)


@lru_cache
def settings() -> Settings:
    return Settings()
