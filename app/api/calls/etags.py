"""Entity tags of what can be computed again: known before it is computed."""

import hashlib

from app.core.store.database import encode_json

ENGINE = 1
"""Raised when the same request to the same model gives other bytes than before."""


def tag(*parts: object) -> str:
    """A strong entity tag over everything the bytes depend on."""
    return f'"{hashlib.sha256(encode_json([ENGINE, *parts]).encode()).hexdigest()[:40]}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names the tag (compared weakly, as RFC 9110 asks)."""
    if not header:
        return False
    tags = [part.strip().removeprefix("W/") for part in header[:8192].split(",")]
    return "*" in tags or etag in tags
