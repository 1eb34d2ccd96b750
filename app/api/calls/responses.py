"""Answers of the inference lane as HTTP responses, in the form that was chosen."""

import base64
import io
import zipfile
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from starlette.responses import Response

from app.api.calls.formats import JSON, NPY, WEBP, ZIP, Format
from app.api.calls.latents import lists_from_npy
from app.core.calls.client import Answer
from app.core.store.database import encode_json

LARGE = 256 << 10
HEADER_FACTS = 4096
EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Asked:
    """What the response has to say about the request it answers."""

    operation: str
    model: str
    digest: str
    format: Format
    listed: bool  # the answer is a list, because the request was one
    picture_first: bool  # images are the answer, facts come beside them
    seed: int | None
    names: list[str] | None = None  # of the files the images came in
    lasting: bool = False  # the same request gives the same bytes, so the body has no timings


async def respond(answer: Answer, asked: Asked, headers: dict[str, str]) -> Response:
    size = sum(map(len, [*answer.images, *answer.sheets.values(), answer.latents or b""]))
    body = await run_sync(_body, answer, asked) if size > LARGE else _body(answer, asked)
    return Response(body, media_type=asked.format.media, headers=_headers(answer, asked) | headers)


def base_headers(asked: Asked) -> dict[str, str]:
    """Those that are known before anything is computed."""
    headers = {"Vary": "Accept", "X-Model-Digest": asked.digest}
    return headers | ({} if asked.seed is None else {"X-Seed": str(asked.seed)})


def _headers(answer: Answer, asked: Asked) -> dict[str, str]:
    headers = base_headers(asked)
    headers["Server-Timing"] = ", ".join(f"{name};dur={value:.3f}" for name, value in answer.timings.items())
    if asked.format.media not in (JSON, ZIP):
        facts = _of_one(answer) if not asked.listed else {}
        text = encode_json(facts)
        if facts and len(text) <= HEADER_FACTS:
            headers["X-Facts"] = text
    if asked.format.media in (ZIP, NPY):
        ending = "zip" if asked.format.media == ZIP else "npy"
        headers["Content-Disposition"] = f'attachment; filename="{asked.operation}.{ending}"'
    return headers


def _body(answer: Answer, asked: Asked) -> bytes:
    if asked.format.media == JSON:
        return encode_json(_document(answer, asked)).encode()
    if asked.format.media == ZIP:
        return _zip(answer, asked)
    if asked.format.media == NPY and asked.format.encoding == "none":
        return answer.latents or b""
    return answer.images[0] if answer.images else b""


def _document(answer: Answer, asked: Asked) -> dict[str, Any]:
    about = {"model": asked.model, "version": asked.digest}
    about |= {} if asked.seed is None else {"seed": asked.seed}
    about |= {} if asked.lasting else {"timings": answer.timings}
    about |= {name: answer.facts[name] | {"image": _text(sheet)} for name, sheet in answer.sheets.items()}
    latents = {} if answer.latents is None else {"latents": lists_from_npy(answer.latents)}
    if not asked.listed:
        return _of_one(answer) | _pictures(answer, 0) | latents | about
    shared = {name: value for name, value in answer.facts.items() if name != "items"}
    items = answer.facts.get("items") or []
    if asked.picture_first:
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
    named = {"image": answer.images, **answer.extra}
    return {name: _text(pictures[index]) for name, pictures in named.items() if index < len(pictures)}


def _text(image: bytes) -> str:
    return base64.b64encode(image).decode()


def _zip(answer: Answer, asked: Asked) -> bytes:
    """Images as they are, further pictures beside them, facts.json; the same answer is the same bytes."""
    ending = "webp" if asked.format.encoding == WEBP else "png"
    stems = dict(enumerate(asked.names if asked.names and len(asked.names) == len(answer.images) else ()))
    files = {f"{stems.get(index, f'{index:04}')}.{ending}": image for index, image in enumerate(answer.images)}
    for name, pictures in answer.extra.items():
        files |= {f"{stems.get(index, f'{index:04}')}-{name}.{ending}": each for index, each in enumerate(pictures)}
    files |= {f"{name}.png": sheet for name, sheet in answer.sheets.items()}
    about = {"model": asked.model, "version": asked.digest, "seed": asked.seed}
    files["facts.json"] = encode_json(answer.facts | about).encode()
    if answer.latents and not answer.images:
        files["latents.npy"] = answer.latents
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), data)
    return out.getvalue()
