"""Names of datasets and models, references to models (`name`, or `name@digest` for one version), the order of files."""

import json
import re
import unicodedata
import zipfile
from typing import Literal, NamedTuple, get_args

from app.core.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([0-9a-f]{8,64}))?")

CodePage = Literal["cp437", "cp850", "cp1252", "cp1250", "cp1251", "cp866", "cp932", "cp949", "gbk", "big5"]
CODE_PAGES = get_args(CodePage)
UTF_8 = 0x800
"""The flag of a zip's member whose name is UTF-8."""


class Reference(NamedTuple):
    """`digest` has at least the first 8 hexadecimal digits, or is None for the newest version."""

    name: str
    digest: str | None


def checked(name: str, field: str = "name") -> str:
    """The name. Raises InvalidRequest."""
    if not NAME.fullmatch(name):
        raise InvalidRequest(
            "A name must be 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit; "
            f"you sent {json.dumps(name[:60])}.",
            field=field,
        )
    return name


def reference(text: str) -> Reference | None:
    """The parts of a reference; None for a text that cannot be one."""
    match = REFERENCE.fullmatch(text)
    return Reference(match[1], match[2]) if match else None


def natural(name: str) -> tuple:
    """Sort key in which class 2 comes before class 10."""
    pieces = re.split(r"([0-9]+)", name)
    # digits compare by length first: an integer of ten thousand digits would be slow to make
    digits = [(len(piece.lstrip("0")), piece.lstrip("0")) for piece in pieces[1::2]]
    return (*zip([piece.casefold() for piece in pieces[::2]], [*digits, (0, "")], strict=True), name)


def member_name(info: zipfile.ZipInfo, encoding: str | None = None) -> str:
    """The path of a zip's member, with / between folders and composed accents.

    Packers that do not set the UTF-8 flag write UTF-8 or the code page of their system: bytes that are valid UTF-8 are
    read as that, others as `encoding` (default: cp437, the one in the format's definition).
    """
    name = _as_utf_8(info)
    if name is None:
        name = info.filename.encode("cp437").decode(encoding or "cp437", "replace")
    # macOS decomposes accents, others do not; backslashes come from old Windows packers
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def is_guessed(info: zipfile.ZipInfo) -> bool:
    """Whether the name was written in an unknown code page: it has no UTF-8 flag and its bytes are not UTF-8."""
    return _as_utf_8(info) is None


def _as_utf_8(info: zipfile.ZipInfo) -> str | None:
    """The name, if it is marked as UTF-8 or its bytes are valid UTF-8."""
    if info.flag_bits & UTF_8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()  # the bytes: zipfile has read them as cp437
    except UnicodeDecodeError:
        return None
