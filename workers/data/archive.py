"""A foreign zip, read member by member and never extracted. Sizes are counted as they are read, not believed."""

import stat
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from app.core.errors import InvalidDataset, InvalidImage
from app.core.names import natural
from app.core.settings import settings
from workers.data.rows import Report

MAX_RATIO = 100
RATIO_COUNTS_FROM = 64 << 20  # below this a high ratio does no harm: blank images compress well
DIRECTORY_BYTES_PER_MEMBER = 200
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Member(NamedTuple):
    path: tuple[str, ...]
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        return "/".join(self.path)


class Archive:
    """`members` are the files worth reading in natural order; what is suspicious about the others is in the report."""

    def __init__(self, file: Path, report: Report):
        self.bytes = file.stat().st_size
        self.read_bytes = 0
        try:
            with file.open("rb") as stream:
                # what ZipFile is about to load into memory; the function is its own, so both see the same number
                end = zipfile._EndRecData(stream)
            if end and end[5] > settings().max_archive_members * DIRECTORY_BYTES_PER_MEMBER:
                raise InvalidDataset("The archive's table of contents is too large.")
            self.zip = zipfile.ZipFile(file)
        except InvalidDataset:
            raise
        except Exception as error:  # BadZipFile and half a dozen others, depending on the bytes
            raise InvalidDataset("The upload is not a zip archive, or it is damaged or cut short.") from error
        infos = self.zip.infolist()
        if len(infos) > settings().max_archive_members:
            self.close()
            raise InvalidDataset(
                f"The archive has {len(infos)} members; at most {settings().max_archive_members} are read."
            )
        self.members = sorted(_worth_reading(infos, report), key=lambda member: natural(member.name))

    def close(self) -> None:
        self.zip.close()

    def read(self, member: Member, limit: int) -> bytes:
        with self.open(member) as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise InvalidImage(f"The file is larger than {limit} bytes.")
        return data

    @contextmanager
    def open(self, member: Member) -> Iterator["CountedStream"]:
        """The member's bytes; trouble with them is InvalidImage, trouble with the archive's limits InvalidDataset."""
        if member.info.flag_bits & 0x1:
            raise InvalidImage("The file is encrypted.")
        if member.info.compress_type not in METHODS:
            raise InvalidImage("The file is compressed in an unusual way; deflate is read.")
        try:
            with self.zip.open(member.info) as stream:
                yield CountedStream(stream, self)
        except (InvalidImage, InvalidDataset):
            raise
        except Exception as error:
            raise InvalidImage("The file is damaged inside the archive.") from error

    def count(self, read: int) -> None:
        self.read_bytes += read
        if self.read_bytes > settings().max_archive_bytes:
            raise InvalidDataset(f"The archive unpacks to more than {settings().max_archive_bytes} bytes.")
        if self.read_bytes > RATIO_COUNTS_FROM and self.read_bytes > MAX_RATIO * self.bytes:
            raise InvalidDataset(
                f"The archive unpacks to more than {MAX_RATIO} times its size.",
                remedy="Store the files with less compression.",
            )


class CountedStream:
    """A member's stream that reports every byte to the archive's limits."""

    def __init__(self, stream: IO[bytes], archive: Archive):
        self.stream, self.archive = stream, archive

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.archive.count(len(data))
        return data


def _worth_reading(infos: list[zipfile.ZipInfo], report: Report) -> Iterator[Member]:
    for info in infos:
        # macOS decomposes accents, others do not; backslashes come from old Windows packers
        name = unicodedata.normalize("NFC", info.filename).replace("\\", "/")
        path = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.endswith("/") or not path or any(part.startswith(".") and part != ".." for part in path):
            continue
        if any(part.lower() in JUNK for part in path):
            continue
        if ".." in path or name.startswith("/") or path[0].endswith(":"):
            report.refuse(name, "The name points outside the archive.")
        elif stat.S_ISLNK(info.external_attr >> 16):
            report.refuse(name, "The file is a symbolic link.")
        else:
            yield Member(path, info)
