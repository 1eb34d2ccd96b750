"""Oracles: remote models that may be attacked over HTTP. The administrator sets them up, never a request."""

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator


class Oracle(BaseModel):
    """The address of an oracle, the form of its answers, and limits of requests."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    url: str = Field(description="URL that images are sent to: http or https. Redirects are not followed.")
    answers: Literal["scores", "labels"] = Field(
        "scores",
        description='JSON {"scores": [[...]]} or {"labels": [...]}, one entry for each image in order; or, of this '
        "service itself, what classify answers (ask it with ?top=1000).",
    )
    classes: list[str] | None = Field(
        None,
        min_length=2,
        max_length=100_000,
        description="Names of the classes in the order of the scores; required for labels.",
    )
    send: Literal["png", "npy"] = Field(
        "png",
        description="png: multipart with a field `image` for each. npy: one uint8 array (n, channels, height, width).",
    )
    token: SecretStr | None = Field(None, description="Sent as Authorization: Bearer.")
    batch: int = Field(16, ge=1, le=256, description="Maximum images in a request.")
    per_second: float | None = Field(None, gt=0, le=10_000, description="Maximum requests per second.")
    timeout_seconds: float = Field(10, gt=0, le=600, description="Maximum seconds for an answer.")
    retries: int = Field(3, ge=0, le=20, description="Maximum retries after a 429, a 5xx or no answer.")
    max_queries: int = Field(100_000, ge=1, le=10**8, description="Maximum images that one job may send.")

    @field_validator("url")
    @classmethod
    def _of_http(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
            raise ValueError("url must be http or https with a host, without user and fragment")
        return url

    @model_validator(mode="after")
    def _labels_need_classes(self) -> "Oracle":
        if self.answers == "labels" and self.classes is None:
            raise ValueError("an oracle with answers=labels needs classes")
        return self


def _as_object(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


OracleSetting = Annotated[Oracle, BeforeValidator(_as_object)]
"""A URL alone, or an object with more."""
