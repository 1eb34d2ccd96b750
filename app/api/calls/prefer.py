"""The header Prefer (RFC 7240): `respond-async` makes a call a job, `wait=N` shortens its deadline."""

import re
from dataclasses import dataclass

WAIT = re.compile(r"wait=(\d{1,4})")


@dataclass(frozen=True)
class Preferences:
    respond_async: bool = False
    wait: int | None = None

    @classmethod
    def read(cls, header: str | None) -> "Preferences":
        words = [word.strip().lower() for word in (header or "")[:1000].split(",")]
        waits = [int(match[1]) for word in words if (match := WAIT.fullmatch(word))]
        return cls("respond-async" in words, waits[0] if waits else None)

    @property
    def applied(self) -> dict[str, str]:
        """The header that says which of them were honoured."""
        words = ["respond-async"] if self.respond_async else [] if self.wait is None else [f"wait={self.wait}"]
        return {"Preference-Applied": words[0]} if words else {}
