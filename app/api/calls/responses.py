"""Answers as HTTP responses: media types (Accept), entity tags (If-None-Match), headers and bodies."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from starlette.responses import Response

from app.api.calls.latents import lists_from_npy
from app.core.calls.client import Answer
from app.core.errors import NotAcceptable
from app.core.store.database import encode_json

PNG, WEBP, JSON, ZIP, NPY = "image/png", "image/webp", "application/json", "application/zip", "application/x-npy"
ENCODINGS = {PNG: "png", WEBP: "webp", JSON: "png", ZIP: "png", NPY: "npy"}
ENGINE = 1
"""Raised when the same request to the same model gives other bytes than before."""
LARGE = 256 << 10  # bytes from which a body is encoded in a thread
HEADER_FACTS = 4096  # maximum characters of the header X-Facts
EPOCH = (1980, 1, 1, 0, 0, 0)


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


@dataclass(frozen=True)
class ResponseSpec:
    """What a response depends on besides the answer of the worker."""

    operation: str
    model: str
    digest: str
    format: Format
    listed: bool  # the answer is a list, because the request was one
    picture_first: bool  # the answer is images, with facts beside them
    seed: int | None
    names: list[str] | None = None  # of the files of the images, without suffix
    lasting: bool = False  # the same request gives the same bytes: the body has no timings


async def respond(answer: Answer, spec: ResponseSpec, headers: dict[str, str]) -> Response:
    size = sum(map(len, [*answer.images, *answer.sheets.values(), answer.latents or b""]))
    body = await run_sync(_body, answer, spec) if size > LARGE else _body(answer, spec)
    return Response(body, media_type=spec.format.media, headers=_headers(answer, spec) | headers)


def base_headers(spec: ResponseSpec) -> dict[str, str]:
    """Headers that are known before the answer is computed."""
    headers = {"Vary": "Accept", "X-Model-Digest": spec.digest}
    return headers | ({} if spec.seed is None else {"X-Seed": str(spec.seed)})


def _headers(answer: Answer, spec: ResponseSpec) -> dict[str, str]:
    headers = base_headers(spec)
    headers["Server-Timing"] = ", ".join(f"{name};dur={value:.3f}" for name, value in answer.timings.items())
    if spec.format.media not in (JSON, ZIP):
        facts = _of_one(answer) if not spec.listed else {}
        if facts and len(text := encode_json(facts)) <= HEADER_FACTS:
            headers["X-Facts"] = text
    if spec.format.media in (ZIP, NPY):
        ending = "zip" if spec.format.media == ZIP else "npy"
        headers["Content-Disposition"] = f'attachment; filename="{spec.operation}.{ending}"'
    return headers


def _body(answer: Answer, spec: ResponseSpec) -> bytes:
    if spec.format.media == JSON:
        return encode_json(_document(answer, spec)).encode()
    if spec.format.media == ZIP:
        return _zip(answer, spec)
    if spec.format.media == NPY and spec.format.encoding == "none":
        return answer.latents or b""
    return answer.images[0] if answer.images else b""


def _document(answer: Answer, spec: ResponseSpec) -> dict[str, Any]:
    about = {"model": spec.model, "version": spec.digest}
    about |= {} if spec.seed is None else {"seed": spec.seed}
    about |= {} if spec.lasting else {"timings": answer.timings}
    about |= {name: answer.facts[name] | {"image": _text(sheet)} for name, sheet in answer.sheets.items()}
    latents = {} if answer.latents is None else {"latents": lists_from_npy(answer.latents)}
    if not spec.listed:
        return _of_one(answer) | _pictures(answer, 0) | latents | about
    shared = {name: value for name, value in answer.facts.items() if name != "items"}
    items = answer.facts.get("items") or []
    if spec.picture_first:
        lists = {"images": [_text(image) for image in answer.images]}
        lists |= {name: [_text(image) for image in pictures] for name, pictures in answer.extra.items()}
        return shared | lists | latents | ({"data": items} if items else {}) | about
    data = [item | _pictures(answer, index) for index, item in enumerate(items)]
    return shared | ({"data": data} if data or not latents else {}) | latents | about


def _of_one(answer: Answer) -> dict[str, Any]:
    shared = {name: value for name, value in answer.facts.items() if name != "items"}
    items = answer.facts.get("items") or [{}]
    return shared | items[0]


def _pictures(answer: Answer, index: int) -> dict[str, str]:
    pictures_by_name = {"image": answer.images, **answer.extra}
    return {name: _text(pictures[index]) for name, pictures in pictures_by_name.items() if index < len(pictures)}


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _zip(answer: Answer, spec: ResponseSpec) -> bytes:
    """Images, further pictures beside them, and facts.json; equal answers give equal bytes."""
    ending = "webp" if spec.format.encoding == WEBP else "png"
    stems = dict(enumerate(spec.names if spec.names and len(spec.names) == len(answer.images) else ()))
    files = {f"{stems.get(index, f'{index:04}')}.{ending}": image for index, image in enumerate(answer.images)}
    for name, pictures in answer.extra.items():
        files |= {f"{stems.get(index, f'{index:04}')}-{name}.{ending}": each for index, each in enumerate(pictures)}
    files |= {f"{name}.png": sheet for name, sheet in answer.sheets.items()}
    about = {"model": spec.model, "version": spec.digest, "seed": spec.seed}
    files["facts.json"] = encode_json(answer.facts | about).encode()
    if answer.latents and not answer.images:
        files["latents.npy"] = answer.latents
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return out.getvalue()
