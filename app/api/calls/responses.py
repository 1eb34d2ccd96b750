"""Answers of inference workers as HTTP responses, in the media type that the request gets."""

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

LARGE = 256 << 10  # bytes from which a body is encoded in a thread
HEADER_FACTS = 4096  # maximum characters of the header X-Facts
EPOCH = (1980, 1, 1, 0, 0, 0)


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
