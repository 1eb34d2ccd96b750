"""The forms an answer can take, and which of them a request gets."""

from dataclasses import dataclass
from typing import Any

from app.api.calls.negotiation import choose

PNG, WEBP, JSON, ZIP, NPY = "image/png", "image/webp", "application/json", "application/zip", "application/x-npy"
ENCODINGS = {PNG: "png", WEBP: "webp", JSON: "png", ZIP: "png", NPY: "npy"}


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
