"""Names of datasets and models, references to models (`name`, or `name@digest` for one version), the order of files."""

import json
import re
from typing import NamedTuple

from app.core.errors import InvalidRequest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
REFERENCE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})(?:@([0-9a-f]{8,64}))?")


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
