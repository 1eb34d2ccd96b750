"""The media types of answers: which of them a request gets (Accept), and entity tags (If-None-Match)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.core.errors import NotAcceptable
from app.core.store.database import encode_json

PNG, WEBP, JSON, ZIP, NPY = "image/png", "image/webp", "application/json", "application/zip", "application/x-npy"
ENCODINGS = {PNG: "png", WEBP: "webp", JSON: "png", ZIP: "png", NPY: "npy"}
ENGINE = 1
"""Raised when the same request to the same model gives other bytes than before."""


@dataclass(frozen=True)
class Format:
    """`encoding` and `grid` are what the worker is asked for."""

    media: str
    encoding: str
    grid: bool


def offers(operation: dict[str, Any], several: bool) -> list[str]:
    """What an operation can answer, the default first."""
    if operation["gives"] == "facts":
        return [JSON]
    if operation["gives"] == "pictured":
        return [JSON, ZIP]
    if operation["gives"] == "latents":
        return [JSON, NPY]
    if operation.get("json_first"):  # what was found out weighs more than the picture
        return [JSON, ZIP, PNG, WEBP, NPY] if several else [JSON, PNG, WEBP, ZIP, NPY]
    if several and not operation["sheet"]:
        return [ZIP, PNG, WEBP, NPY, JSON]
    return [PNG, WEBP, ZIP, NPY, JSON]


def pick(operation: dict[str, Any], accept: str | None, several: bool) -> Format:
    """Raises NotAcceptable."""
    media = choose(accept, offers(operation, several))
    encoding = ENCODINGS[media] if operation["gives"] in ("images", "pictured") else "none"
    return Format(media, encoding, grid=several and media in (PNG, WEBP))


def choose(accept: str | None, offers: Sequence[str]) -> str:
    """The offered media type that Accept gives the highest weight (RFC 9110, section 12.5.1), the first among equals.

    Raises NotAcceptable.
    """
    ranges = _ranges(accept) if accept and accept.strip() else [("*", "*", 1.0)]
    best = max(offers, key=lambda offer: _weight(offer, ranges))
    if _weight(best, ranges) <= 0:
        raise NotAcceptable(
            "The header Accept allows no media type of the answer.", remedy=f"Accept one of: {', '.join(offers)}."
        )
    return best


def _ranges(accept: str) -> list[tuple[str, str, float]]:
    ranges = []
    for part in accept[:4096].split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        main, slash, sub = media.partition("/")
        if media == "*":
            main, slash, sub = "*", "/", "*"
        if slash and main and sub:
            ranges.append((main, sub, _quality(parameters)))
    return ranges


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def _weight(offer: str, ranges: list[tuple[str, str, float]]) -> float:
    """The weight of the most specific range that the offer falls into."""
    main, sub = offer.split("/")
    for pattern in ((main, sub), (main, "*"), ("*", "*")):
        weights = [quality for left, right, quality in ranges if (left, right) == pattern]
        if weights:
            return max(weights)
    return 0.0


def tag(*parts: object) -> str:
    """A strong entity tag of everything that the bytes of an answer depend on."""
    return f'"{hashlib.sha256(encode_json([ENGINE, *parts]).encode()).hexdigest()[:40]}"'


def matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names the tag (compared weakly, as RFC 9110 asks)."""
    if not header:
        return False
    tags = [part.strip().removeprefix("W/") for part in header[:8192].split(",")]
    return "*" in tags or etag in tags
