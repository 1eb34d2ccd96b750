"""The rows of the quality table: every `Row` that a module of this folder holds, by name."""

import importlib
import pkgutil

from tests.benchmarks.claims import Row


def groups() -> dict[str, list[Row]]:
    """Rows by the module they stand in, each in the order of its file."""
    found = {}
    for entry in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        found[entry.name] = [item for item in vars(module).values() if isinstance(item, Row)]
    return found


def rows() -> dict[str, Row]:
    """Every row by name. Raises ValueError when two have the same."""
    every = [row for group in groups().values() for row in group]
    found = {row.name: row for row in every}
    if len(found) < len(every):
        raise ValueError("two rows of the quality table have the same name")
    return found
