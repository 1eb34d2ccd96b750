"""Pairs of icons, outline and filled: Material Design Icons from the font inside QtAwesome, without Qt."""

import json
from collections.abc import Iterator

from workers.builtins.examples import TRAIN, VALIDATION, Duplicates, Example, Examples, file_of, held_out
from workers.builtins.glyphs import Font, Ink

FONT = "fonts/materialdesignicons6*.ttf"
CODES = "fonts/materialdesignicons6*charmap*.json"
OUTLINE = "-outline"
HEIGHT = 0.92  # fraction of the image's side; the rest is margin


def outline2fill(size: int) -> Examples:
    """Dark on white. Icons whose names start with the same word (file, file-account ...) are near copies."""
    codes = json.loads(file_of("qtawesome", CODES).read_text())
    font = Font(file_of("qtawesome", FONT), int(size * HEIGHT))
    names = [name for name in sorted(codes) if name + OUTLINE in codes]
    out = held_out(map(group_of, names))

    def draw(name: str):
        return font.draw(chr(int(codes[name], 16)), size, (size / 2, size / 2), "mm", Ink.DARK)

    def each() -> Iterator[Example | None]:
        duplicates = Duplicates()
        for name in names:
            outline, filled = draw(name + OUTLINE), draw(name)
            split = VALIDATION if group_of(name) in out else TRAIN
            pair = Example(name, {"input": outline, "target": filled}, group=group_of(name), split=split)
            yield None if duplicates.seen_before(outline, filled) else pair

    return Examples(len(names), each())


def group_of(name: str) -> str:
    return name.split("-")[0]
