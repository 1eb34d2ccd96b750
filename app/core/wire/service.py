"""What the service says of itself: its errors and its health."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Fault(BaseModel):
    """One field that cannot stay as it is."""

    pointer: str = Field(description="JSON pointer into the body, or the name of a parameter.")
    code: str
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `type` leads to a page about it; `remedy` says what to do."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["/errors/not-found"])
    title: str
    status: int
    detail: str
    code: str = Field(examples=["not-found"])
    remedy: str | None = None
    retry_after: float | None = Field(None, description="Seconds, as in the header Retry-After.")
    errors: list[Fault] | None = None
    request_id: str | None = None


class Health(BaseModel):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str]
