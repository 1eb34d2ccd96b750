"""Reads an uploaded zip member by member, without extracting it; limits count the bytes that are really read."""

import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from app.core.errors import InvalidDataset, InvalidImage
from app.core.names import is_guessed, member_name, natural
from app.core.settings import settings
from workers.data.rows import Report, printable

MAX_RATIO = 100
RATIO_COUNTS_FROM = 64 << 20  # smaller archives may have any ratio: blank images compress well
DIRECTORY_BYTES_PER_MEMBER = 200
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
PACKERS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd"}


class Member(NamedTuple):
    path: tuple[str, ...]
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        return "/".join(self.path)


class Archive:
    """`members` are the usable files in natural order; files with unsafe names are refused in the report.

    `encoding`: the code page of names without the UTF-8 flag.
    """

    def __init__(self, file: Path, report: Report, encoding: str | None = None):
        self.bytes = file.stat().st_size
        self.read_bytes = 0
        try:
            with file.open("rb") as stream:
                # the size of the central directory, which ZipFile would load into memory
                end = zipfile._EndRecData(stream)
            limit = settings().max_archive_members * DIRECTORY_BYTES_PER_MEMBER
            if end and end[5] > limit:
                raise InvalidDataset(
                    f"The archive's table of contents has {end[5]} bytes; at most {limit} are allowed.",
                    remedy="Send fewer files.",
                )
            self.zip = zipfile.ZipFile(file)
        except InvalidDataset:
            raise
        except Exception as error:  # BadZipFile and half a dozen others, depending on the bytes
            raise InvalidDataset("The upload is not a zip file, or it is damaged or incomplete.") from error
        infos = self.zip.infolist()
        if len(infos) > settings().max_archive_members:
            self.close()
            raise InvalidDataset(
                f"The archive has {len(infos)} entries; at most {settings().max_archive_members} are allowed.",
                remedy="Send fewer files.",
            )
        self.members = sorted(_usable(infos, report, encoding), key=lambda member: natural(member.name))

    def close(self) -> None:
        self.zip.close()

    def read(self, member: Member, limit: int) -> bytes:
        with self.open(member) as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise InvalidImage(f"The file is larger than {limit} bytes, which is the limit.")
        return data

    @contextmanager
    def open(self, member: Member) -> Iterator["CountedStream"]:
        """A stream of the member's bytes. Raises InvalidImage for a bad member, InvalidDataset beyond the limits."""
        if member.info.flag_bits & 0x1:
            raise InvalidImage("The file is encrypted.")
        if member.info.compress_type not in METHODS:
            method = PACKERS.get(member.info.compress_type, f"method {member.info.compress_type}")
            raise InvalidImage(f"The file is packed with {method}; pack it with deflate (or store it).")
        try:
            with self.zip.open(member.info) as stream:
                yield CountedStream(stream, self)
        except (InvalidImage, InvalidDataset):
            raise
        except Exception as error:
            raise InvalidImage("The file is damaged in the archive.") from error

    def count(self, read: int) -> None:
        self.read_bytes += read
        if self.read_bytes > settings().max_archive_bytes:
            raise InvalidDataset(f"The archive unpacks to more than {settings().max_archive_bytes} bytes.")
        if self.read_bytes > RATIO_COUNTS_FROM and self.read_bytes > MAX_RATIO * self.bytes:
            raise InvalidDataset(
                f"The archive unpacks to more than {MAX_RATIO} times its size.",
                remedy="Zip the files with a lower compression level.",
            )


class CountedStream:
    """A member's stream; every byte read counts towards the archive's limits."""

    def __init__(self, stream: IO[bytes], archive: Archive):
        self.stream, self.archive = stream, archive

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.archive.count(len(data))
        return data


def _usable(infos: list[zipfile.ZipInfo], report: Report, encoding: str | None) -> Iterator[Member]:
    if encoding is None and (guessed := next(filter(is_guessed, infos), None)):
        report.warn(
            f"Names of files are in an unknown code page and were read as cp437, for example "
            f"{printable(member_name(guessed))}. If they look wrong, import with names=cp932 (Japanese), names=cp1252 "
            "(western), names=cp866 or cp1251 (Cyrillic), names=gbk or names=big5 (Chinese), names=cp949 (Korean)."
        )
    for info in infos:
        name = member_name(info, encoding)
        path = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.endswith("/") or not path or any(part.startswith(".") and part != ".." for part in path):
            continue
        if any(part.lower() in JUNK for part in path):
            continue
        if ".." in path or name.startswith("/") or path[0].endswith(":"):
            report.refuse(name, "The path points outside the archive.")
        elif stat.S_ISLNK(info.external_attr >> 16):
            report.refuse(name, "The file is a symbolic link; only regular files are read.")
        else:
            yield Member(path, info)
