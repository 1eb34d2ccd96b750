"""Errors, health, and API keys."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.core.store.keys import SCOPES
from app.core.wire.terms import Request


class Fault(BaseModel):
    """One invalid field or parameter."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a parameter.")
    code: str
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `type` is the path of a page about it; `remedy` says what to do."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/errors/not-found"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["not-found"])
    remedy: str | None = None
    retry_after: float | None = Field(None, description="Seconds to wait, as in the header Retry-After.")
    errors: list[Fault] | None = None
    request_id: str | None = None


class Health(BaseModel):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str]


class KeyRequest(Request):
    """A new API key; only the answer to this request has its token."""

    name: str = Field(min_length=1, max_length=128, examples=["laptop"])
    tenant: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        examples=["local"],
        description="Default: that of the key that makes it.",
    )
    scopes: list[Literal[*SCOPES]] = Field(["read", "write"], min_length=1, max_length=len(SCOPES))
    days: float | None = Field(None, gt=0, le=36500, description="Lifetime in days. Default: until it is revoked.")


class Key(BaseModel):
    id: str
    tenant: str
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewKey(Key):
    token: str = Field(description="Only in this answer: store it.")


class Quota(BaseModel):
    """A limit and what is used of it."""

    limit: float | None = Field(description="Maximum; null: no limit.")
    used: float | None = Field(description="null where it is not counted.")
    window_seconds: float | None = Field(None, description="The time in which `used` is counted; null: now.")
    resets_in_seconds: float | None = None


class Me(BaseModel):
    """The key of the request and its quotas: `requests` and `compute_seconds` of the key, the others of its tenant."""

    key: Key | None = Field(description="null without a key in the database.")
    tenant: str
    scopes: list[str]
    quotas: dict[str, Quota]
