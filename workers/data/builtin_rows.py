"""Reads a built-in dataset as rows, which are imported like those of an upload."""

from collections.abc import Iterator

from app.core.catalog.builtins import BUILTINS
from app.core.errors import NotFound
from workers.builtins import LOADERS, Example
from workers.data.boxes import Box
from workers.data.rows import Row, Size


class BuiltinSource:
    """A Source (see rows.py). The pictures are drawn at `size`, not scaled to it."""

    def __init__(self, builtin: str, size: Size | None = None):
        if builtin not in LOADERS:
            raise NotFound(
                f"Unknown built-in dataset {builtin!r}.", field="builtin", remedy=f"Choose one of {', '.join(LOADERS)}."
            )
        facts = BUILTINS[builtin]
        if size:
            facts.check_size(*size)
        side = size.height if size else facts.height
        self.layout, self.twins = facts.layout, facts.twins
        self.classes = list(facts.classes) if facts.classes else None
        self.total, self.examples = LOADERS[builtin](side) if facts.sizes else LOADERS[builtin]()

    def rows(self) -> Iterator[Row | None]:
        return (example and _row(example) for example in self.examples)

    def close(self) -> None:
        pass


def _row(example: Example) -> Row:
    values = dict(example.values or {}) | ({} if example.label is None else {"labels": example.label})
    boxes = None if example.boxes is None else [Box(*box) for box in example.boxes]
    return Row(example.name, example.images, example.mask, values, example.split, example.group, boxes)
