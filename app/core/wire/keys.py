"""API keys."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.core.store.keys import SCOPES
from app.core.wire.terms import Request


class KeyRequest(Request):
    """A new API key; its token is shown in the answer and never again."""

    name: str = Field(min_length=1, max_length=128, examples=["laptop"])
    tenant: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["local"])
    scopes: list[Literal[*SCOPES]] = Field(["read", "write"], min_length=1, max_length=len(SCOPES))
    days: float | None = Field(None, gt=0, le=36500, description="Life of the key; null: until it is revoked.")


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
    token: str = Field(description="Shown here alone: keep it.")
