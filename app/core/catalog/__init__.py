"""What the models can do, as data: families, attacks, operations and the JSON schemas of their settings.

The files `entries/<kind>/<name>.json` are written by `python -m models.catalog`. With them the web front refuses a
wrong setting by name without importing torch.
"""

import json
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from app.core.catalog.complete import complete
from app.core.catalog.describe import joined
from app.core.errors import InvalidConfig, InvalidRequest, NotFound

ENTRIES = Path(__file__).with_name("entries")
KINDS = ("families", "attacks", "operations", "reports", "defences", "detectors", "perturbations")
Catalog = dict[str, dict[str, dict[str, Any]]]


@lru_cache
def load() -> Catalog:
    """The catalog this release was built with."""
    return {
        kind: {
            file.stem: json.loads(file.read_text(encoding="utf-8"))
            for file in sorted(ENTRIES.joinpath(kind).glob("*.json"), key=lambda file: file.stem)
        }
        for kind in KINDS
    }


def nearest(name: str, known: list[str]) -> str:
    """A sentence for a name nobody knows: the likeliest meant ones, else all there are."""
    close = get_close_matches(name[:100], known, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {joined(close, 'or')}?"
    return f"Known: {joined(sorted(known)[:20])}." if known else "There is none yet."


def family(catalog: Catalog, name: str) -> dict[str, Any]:
    """The entry of a family. Raises InvalidConfig with the nearest names."""
    if name not in catalog["families"]:
        remedy = nearest(name, list(catalog["families"]))
        raise InvalidConfig("There is no such family of models.", field="/family", remedy=remedy)
    return catalog["families"][name]


def attack(catalog: Catalog, name: str) -> dict[str, Any]:
    """The entry of an attack. Raises NotFound with the nearest names."""
    if name not in catalog["attacks"]:
        raise NotFound("There is no such attack.", field="method", remedy=nearest(name, list(catalog["attacks"])))
    return catalog["attacks"][name]


def report(catalog: Catalog, name: str) -> dict[str, Any]:
    """The entry of a kind of report. Raises InvalidRequest with the nearest names."""
    if name not in catalog.get("reports", {}):
        remedy = nearest(name, list(catalog.get("reports", {})))
        raise InvalidRequest("There is no such kind of report.", field="/report", remedy=remedy)
    return catalog["reports"][name]


def operations_of(catalog: Catalog, capabilities: list[str]) -> list[str]:
    """The operations a model with these capabilities can do."""
    able = set(capabilities)
    return [name for name, entry in catalog["operations"].items() if all(map(partial(meets, able), entry["needs"]))]


def meets(able: set[str], need: str | list[str]) -> bool:
    """Whether a need is met: a capability, or a list of which one is enough."""
    return need in able if isinstance(need, str) else bool(able.intersection(need))


def spoken(need: str | list[str]) -> str:
    """A need in words."""
    return need if isinstance(need, str) else joined(need, "or")


def branches(catalog: Catalog, operation: str) -> dict[str, dict[str, Any]] | None:
    """The alternatives of an operation whose parameters depend on a discriminator, by its value; None for others."""
    params = catalog["operations"][operation]["params"]
    return catalog[params["branches"]] if "branches" in params else None


__all__ = [
    "Catalog",
    "attack",
    "branches",
    "complete",
    "family",
    "load",
    "meets",
    "nearest",
    "operations_of",
    "report",
    "spoken",
]
