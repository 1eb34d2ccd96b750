"""A zip of images as input, such as the frames of a video, read in order of their names."""

import io
import zipfile
from posixpath import basename, splitext

from app.core.errors import InvalidImage, InvalidRequest, TooLarge
from app.core.names import member_name, natural
from app.core.settings import settings

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
UNPACK_FACTOR = 4
"""Maximum size of the unpacked images, in units of the largest body: images hardly shrink in a zip."""


def read_frames(body: bytes, most: int) -> tuple[list[str], list[bytes]]:
    """Names without folder and suffix, and files, in natural order: frame 2 before frame 10.

    Raises InvalidRequest for a file that is not a zip of images, TooLarge for more than `most` images.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            infos = sorted(filter(_is_frame, archive.infolist()), key=lambda info: natural(member_name(info)))
            if len(infos) > most:
                raise TooLarge(
                    f"The zip has {len(infos)} images; the maximum is {most}.",
                    remedy="Send fewer, or send 'Prefer: respond-async' to make the request a job.",
                )
            if not infos:
                raise InvalidRequest("The zip has no PNG, JPEG or WebP file.", field="image")
            files = _read(archive, infos)
    except (InvalidRequest, InvalidImage, TooLarge):
        raise
    except Exception as error:  # BadZipFile and half a dozen others, depending on the bytes
        raise InvalidRequest("The zip archive is damaged or incomplete.") from error
    names = [splitext(basename(member_name(info)))[0] for info in infos]
    if len(set(names)) < len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidRequest(f"Two images of the zip are named {repeated[:80]}.", remedy="Rename one.")
    return names, files


def _read(archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo]) -> list[bytes]:
    files, left = [], UNPACK_FACTOR * settings().max_json_bytes
    for index, info in enumerate(infos):
        if info.flag_bits & 0x1 or info.compress_type not in METHODS:
            raise InvalidImage(
                "The file is encrypted or compressed with an unsupported method.", field=f"images/{index}"
            )
        limit = min(left, settings().max_image_bytes)
        with archive.open(info) as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise TooLarge(f"The image unpacks to more than {limit} bytes.", field=f"images/{index}")
        left -= len(data)
        files.append(data)
    return files


def _is_frame(info: zipfile.ZipInfo) -> bool:
    path = member_name(info).split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in path)
    return not hidden and path[-1].lower().endswith(SUFFIXES)
