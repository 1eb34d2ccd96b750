"""Names of datasets and models, references to models (`name`, or `name@digest` for one version), the order of files."""

import re
from typing import NamedTuple

from app.core.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([0-9a-f]{8,64}))?")


class Reference(NamedTuple):
    """`digest` is a prefix of at least 8 hexadecimal digits, or None for the newest version."""

    name: str
    digest: str | None


def checked(name: str, field: str = "name") -> str:
    if not NAME.fullmatch(name):
        raise InvalidRequest("A name is 1 to 64 of A-Z a-z 0-9 . _ - and begins with a letter or a digit.", field=field)
    return name


def reference(text: str) -> Reference | None:
    """None: no model can be called so."""
    match = REFERENCE.fullmatch(text)
    return Reference(match[1], match[2]) if match else None


def natural(name: str) -> tuple:
    """Sort key under which class 2 comes before class 10."""
    pieces = re.split(r"([0-9]+)", name)
    # digits compare by length first: an integer of ten thousand digits would be slow to make
    digits = [(len(piece.lstrip("0")), piece.lstrip("0")) for piece in pieces[1::2]]
    return (*zip([piece.casefold() for piece in pieces[::2]], [*digits, (0, "")], strict=True), name)
