"""The inputs of an operation: a raw image, multipart, a zip, JSON with base64, latents as JSON or npy.

Only the headers of images are read here; an inference worker decodes them.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request
from starlette.datastructures import UploadFile

from app.api.calls.frames import read_frames
from app.api.calls.latents import latents_from_lists, latents_from_npy
from app.api.http.strict import parse_object
from app.core.catalog.describe import quoted
from app.core.catalog.describe import sent as describe_sent
from app.core.errors import InvalidImage, InvalidRequest, TooLarge, UnsupportedMedia
from app.core.images import from_base64, read_header, read_headers, too_costly
from app.core.settings import settings

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
NPY, ZIP = "application/x-npy", "application/zip"
ZIPS = (ZIP, "application/x-zip-compressed")
UNSPECIFIC = ("", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain")
"""Default media types of clients such as curl: the first bytes of the body decide."""
MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
BROKEN_PNG = b"\x89PNG\x1a"  # what curl -d makes of a PNG: it drops line breaks
OTHER_FORMATS = {
    "GIF": rb"GIF8",
    "BMP": rb"BM",
    "HEIC": rb"....ftyp(heic|heix|mif1|msf1)",
    "AVIF": rb"....ftypavi[fs]",
    "TIFF": rb"II\*\x00|MM\x00\*",
    "SVG": rb"\s*<(\?xml|svg)",
    "PDF": rb"%PDF",
}
LARGE = 4 << 20
"""Bytes of images from which on their headers are read on a thread."""
PNG_TEXT = re.compile(r"(data:[^,]{0,200},)?iVBORw0KGgo")
"""How a PNG in base64 begins."""


@dataclass
class Inputs:
    """Encoded images or latents, and the parameters in the body: `params` of JSON, `texts` of a form.

    `several`: the client sent a list, so the answer is a list. `names`: of the files of a zip, without suffix.
    `pixels` have all images together; `decode_pixels` is the CPU time of decoding them (see app/core/images.py).
    """

    images: list[bytes] | None = None
    latents: bytes | None = None
    rows: int = 0
    several: bool = False
    names: list[str] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    pixels: int = 0
    decode_pixels: int = 0


async def read(request: Request, takes: str, most: int, *, as_job: bool = False) -> Inputs:
    """The inputs of a request to an operation that takes images, latents, either or nothing; at most `most` images."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMedia("Compressed bodies are not supported.", remedy="Send the body without Content-Encoding.")
    if takes == "nothing" and request.method == "GET":
        return Inputs()
    media = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media == "multipart/form-data":
        sent = await _from_form(request, most)
    else:
        body = await request.body()
        media = _sniff(body, media) if media in UNSPECIFIC else media
        sent = await _from_zip(body, most) if media in ZIPS else _from_body(body, media)
    if takes != "nothing":
        _check_kind(sent, takes)
    pixels = settings().job_pixels if as_job else settings().call_pixels
    if sent.images and sum(map(len, sent.images)) > LARGE:
        await run_sync(count_pixels, sent, pixels)
    else:
        count_pixels(sent, pixels)
    return sent


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
    name = other_format(body)
    raise UnsupportedMedia(
        f"Unsupported image format ({name})." if name else f"The media type {quoted(media)} is not supported here.",
        remedy=f"Send {', '.join(IMAGE_TYPES)}, multipart/form-data, {ZIP}, application/json or {NPY}.",
    )


def _sniff(body: bytes, media: str) -> str:
    if MAGIC.match(body) or body.startswith(BROKEN_PNG):
        return "image/png"
    if body.startswith(b"\x93NUMPY"):
        return NPY
    if body.startswith(b"PK\x03\x04"):
        return ZIP
    return "application/json" if body.lstrip()[:1] == b"{" else media or "image/png"


def _from_json(body: bytes) -> Inputs:
    members = parse_object(body)
    inputs = [name for name in ("image", "images", "latents") if name in members]
    if len(inputs) > 1:
        raise InvalidRequest(f"The body has {' and '.join(inputs)}. Send one of them.", field=f"/{inputs[1]}")
    params = {name: value for name, value in members.items() if name not in inputs}
    if inputs == ["image"]:
        return Inputs(images=[_decoded(members["image"], "/image")], rows=1, params=params)
    if inputs == ["images"]:
        images = members["images"]
        if not isinstance(images, list):
            raise InvalidRequest(
                f"images must be a list of base64 texts; you sent {describe_sent(images)}.", field="/images"
            )
        decoded = [_decoded(image, f"/images/{index}") for index, image in enumerate(images)]
        return Inputs(images=decoded, rows=len(decoded), several=True, params=params)
    if inputs == ["latents"]:
        latents, rows, several = latents_from_lists(members["latents"])
        return Inputs(latents=latents, rows=rows, several=several, params=params)
    return Inputs(params=params)


def _decoded(text: Any, pointer: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidRequest(
            f"An image in JSON must be the base64 text of its file; you sent {describe_sent(text)}.", field=pointer
        )
    return from_base64(text, pointer)


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
                    raise InvalidRequest(
                        f"Unknown file field {quoted(name)}.",
                        field="image",
                        remedy="Name the form field image: -F image=@x.png.",
                    )
                images.append(await value.read())
            elif name in texts:
                raise InvalidRequest(f"The form has {quoted(name)} twice. Send it once.", field=name[:80])
            else:
                texts[name] = value
    return Inputs(images=images or None, rows=len(images), several=len(images) > 1, texts=texts)


def _check_kind(sent: Inputs, takes: str) -> None:
    """Raises InvalidRequest for inputs of another kind than the operation takes."""
    allowed = {"either": "latents or images"}.get(takes, takes)
    kind = "images" if sent.images is not None else "latents" if sent.latents is not None else None
    if kind is None or not sent.rows:
        raise InvalidRequest(
            f"The request has no {allowed}.",
            field=allowed.split()[-1],
            remedy='Send an image as the body, form fields named image, or JSON {"image": "<base64>"}.'
            if takes != "latents"
            else 'Send JSON {"latents": [[...]]} or an npy file.',
        )
    if takes not in ("either", kind):
        raise InvalidRequest(f"This operation takes {allowed}; you sent {kind}.", field=kind)


def count_pixels(sent: Inputs, most: int) -> None:
    """Sets the pixels of all images and what decoding them costs, also of those that are parameters. Raises TooLarge
    for a cost of more than `most` pixels, InvalidImage for an image whose header is invalid."""
    for index, image in enumerate(sent.images or ()):
        check_image(image, f"images/{index}")
    images = sent.images or []
    headers = read_headers(images, most)
    cost, count = sum(header.cost for header in headers), len(images)
    for name, value in (sent.params | sent.texts).items():
        if isinstance(value, str) and PNG_TEXT.match(value):
            count += 1
            cost += _plane_cost(value, name[:80])
            if cost > most:
                raise too_costly(cost, most, count, count)
    sent.pixels, sent.decode_pixels = sum(header.height * header.width for header in headers), cost


def _plane_cost(text: str, name: str) -> int:
    try:
        return read_header(from_base64(text, name)).cost
    except InvalidImage as error:
        error.field = name
        raise


def check_image(image: bytes, field: str) -> None:
    """Raises TooLarge, or InvalidImage naming the format, for a file that is not a PNG, JPEG or WebP image."""
    limit = settings().max_image_bytes
    if len(image) > limit:
        raise TooLarge(f"The image has {len(image)} bytes; the maximum is {limit}.", field=field)
    if MAGIC.match(image):
        return
    if image.startswith(BROKEN_PNG):
        raise InvalidImage(
            "The PNG file was changed on the way: its line breaks are missing.",
            field=field,
            remedy="With curl, use --data-binary @x.png in place of -d @x.png.",
        )
    name = other_format(image)
    detail = f"Unsupported image format ({name})." if name else "The file is not a PNG, JPEG or WebP image."
    raise InvalidImage(detail, field=field, remedy="Send PNG, JPEG or WebP.")


def other_format(data: bytes) -> str | None:
    """The name of an image format that is not supported, recognised by the first bytes."""
    return next((name for name, magic in OTHER_FORMATS.items() if re.match(magic, data, re.DOTALL)), None)
