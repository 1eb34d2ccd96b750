"""The inputs of an operation, however sent: a raw image, multipart, a zip, JSON with base64, latents as JSON or npy.

Bytes are only weighed here and told apart by their first few; an inference worker reads them.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.datastructures import UploadFile

from app.api.calls.frames import read_frames
from app.api.calls.latents import latents_from_lists, latents_from_npy
from app.api.http.strict_json import parse_object
from app.core.errors import InvalidImage, InvalidRequest, TooLarge, UnsupportedMedia
from app.core.settings import settings

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
NPY, ZIP = "application/x-npy", "application/zip"
ZIPS = (ZIP, "application/x-zip-compressed")
UNTOLD = ("", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
"""What clients send who did not think about it, curl above all: the body itself says what it is."""
MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
DATA_URL = re.compile(r"data:image/[a-z]{3,4};base64,")


@dataclass
class Inputs:
    """`several`: the client gave a list, and gets one back. `params` came in the body beside the inputs.

    `names` are those of the files of a zip, without suffix.
    """

    images: list[bytes] | None = None
    latents: bytes | None = None
    rows: int = 0
    several: bool = False
    names: list[str] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)


async def read(request: Request, takes: str, most: int) -> Inputs:
    """The inputs of a request to an operation that takes images, latents, either or nothing."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not read.", remedy="Send the body as it is.")
    if takes == "nothing" and request.method == "GET":
        return Inputs()
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media == "multipart/form-data":
        found = await _from_form(request, most)
    else:
        body = await request.body()
        media = _told_by(body, media) if media in UNTOLD else media
        found = await _from_zip(body, most) if media in ZIPS else _from_body(body, media)
    return found if takes == "nothing" else _checked(found, takes)


def _from_body(body: bytes, media: str) -> Inputs:
    if not body:
        return Inputs()
    if media in IMAGE_TYPES or media == "image/jpg":
        return Inputs(images=[body], rows=1)
    if media == NPY:
        latents, rows, several = latents_from_npy(body)
        return Inputs(latents=latents, rows=rows, several=several)
    if media == "application/json" or media.endswith("+json"):
        return _from_json(body)
    raise UnsupportedMedia(
        "The body has a media type that is not read here.",
        remedy=f"Send {', '.join(IMAGE_TYPES)}, multipart/form-data, {ZIP}, application/json or {NPY}.",
    )


def _told_by(body: bytes, media: str) -> str:
    if MAGIC.match(body):
        return "image/png"
    if body.startswith(b"\x93NUMPY"):
        return NPY
    if body.startswith(b"PK\x03\x04"):
        return ZIP
    return "application/json" if body.lstrip()[:1] == b"{" else media or "image/png"


def _from_json(body: bytes) -> Inputs:
    members = parse_object(body)
    given = [name for name in ("image", "images", "latents") if name in members]
    if len(given) > 1:
        raise InvalidRequest(f"Give one of {' and '.join(given)}.", field=f"/{given[1]}")
    params = {name: value for name, value in members.items() if name not in given}
    if given == ["image"]:
        return Inputs(images=[_decoded(members["image"], "/image")], rows=1, params=params)
    if given == ["images"]:
        images = members["images"]
        if not isinstance(images, list):
            raise InvalidRequest("images is a list of base64 texts.", field="/images")
        found = [_decoded(image, f"/images/{index}") for index, image in enumerate(images)]
        return Inputs(images=found, rows=len(found), several=True, params=params)
    if given == ["latents"]:
        latents, rows, several = latents_from_lists(members["latents"])
        return Inputs(latents=latents, rows=rows, several=several, params=params)
    return Inputs(params=params)


def _decoded(text: Any, pointer: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest("An image in JSON is the base64 text of its file.", field=pointer)
    try:
        return base64.b64decode(DATA_URL.sub("", text, count=1), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("This is no base64.", field=pointer) from None


async def _from_zip(body: bytes, most: int) -> Inputs:
    names, images = await run_sync(read_frames, body, most)
    return Inputs(images=images, rows=len(images), several=True, names=names)


async def _from_form(request: Request, most: int) -> Inputs:
    images: list[bytes] = []
    texts: dict[str, Any] = {}
    async with request.form(max_files=most + 1, max_fields=100, max_part_size=1 << 16) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("image", "images"):
                    raise InvalidRequest("Images come in fields called image.", field="image")
                images.append(await value.read())
            elif name in texts:
                raise InvalidRequest("This is given twice.", field=name[:80])
            else:
                texts[name] = value
    return Inputs(images=images or None, rows=len(images), several=len(images) > 1, texts=texts)


def _checked(found: Inputs, takes: str) -> Inputs:
    wanted = {"either": "latents or images"}.get(takes, takes)
    given = "images" if found.images is not None else "latents" if found.latents is not None else None
    if given is None or not found.rows:
        raise InvalidRequest(
            f"The request has no {wanted}.",
            field=wanted.split()[-1],
            remedy='Send an image as the body, "image" fields in multipart, or JSON.'
            if takes != "latents"
            else 'Send JSON {"latents": [[...]]} or an npy file.',
        )
    if takes not in ("either", given):
        raise InvalidRequest(f"This operation takes {wanted}, not {given}.", field=given)
    _check_images(found.images or ())
    return found


def _check_images(images: Iterable[bytes]) -> None:
    for index, image in enumerate(images):
        if len(image) > settings().max_image_bytes:
            raise TooLarge(f"An image may have {settings().max_image_bytes} bytes.", field=f"images/{index}")
        if not MAGIC.match(image):
            raise InvalidImage(
                "This is no PNG, JPEG or WebP.",
                field=f"images/{index}",
                remedy="Convert the image to one of these formats.",
            )
