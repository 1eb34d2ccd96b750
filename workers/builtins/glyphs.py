"""Letters and digits of the fonts inside matplotlib, on a common baseline."""

from collections.abc import Iterator
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from app.core.catalog.builtins import LETTERS
from workers.builtins.examples import TRAIN, VALIDATION, Duplicates, Example, Examples, file_of, held_out

FOLDER = "mpl-data/fonts/ttf"
POINTS, GROUND = 0.76, 0.76  # fractions of the image's side: font size, and height of the baseline


class Ink(Enum):
    """(ground, ink) in levels of gray."""

    DARK = (255, 0)
    BRIGHT = (0, 255)


class Font:
    def __init__(self, path: Path, points: int):
        # the basic layout: the other one needs a library that is not always installed
        self.font = ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)

    def draw(self, text: str, size: int, at: tuple[float, float], anchor: str, ink: Ink = Ink.BRIGHT) -> np.ndarray:
        """uint8 (1, size, size), with `anchor` of the text (as Pillow names it) at (x, y)."""
        ground, level = ink.value
        picture = Image.new("L", (size, size), ground)
        ImageDraw.Draw(picture).text(at, text, fill=level, font=self.font, anchor=anchor)
        return np.array(picture)[None]


class Face(NamedTuple):
    """A font file, and the file of its italic version. Faces of one family look alike."""

    family: str
    file: str
    italic: str | None = None


# Faces with all 62 characters; cmex10, cmsy10 and LastResortHE claim to have them but draw other symbols.
FACES = (
    Face("DejaVu Sans", "DejaVuSans", "DejaVuSans-Oblique"),
    Face("DejaVu Sans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique"),
    Face("DejaVu Sans Mono", "DejaVuSansMono", "DejaVuSansMono-Oblique"),
    Face("DejaVu Sans Mono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique"),
    Face("DejaVu Serif", "DejaVuSerif", "DejaVuSerif-Italic"),
    Face("DejaVu Serif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic"),
    Face("STIX General", "STIXGeneral", "STIXGeneralItalic"),
    Face("STIX General", "STIXGeneralBol", "STIXGeneralBolIta"),
    Face("Computer Modern", "cmr10", "cmti10"),
    Face("Computer Modern", "cmb10"),
    Face("Computer Modern", "cmmi10"),
    Face("Computer Modern Sans", "cmss10"),
    Face("Computer Modern Typewriter", "cmtt10"),
)
UNSEEN = "STIX General"
"""The font family of the validation images: they test letters of an unknown face."""


def glyphs(size: int) -> Examples:
    """Bright on black. If a character looks the same in two faces, the second is left out."""
    files = faces()

    def each() -> Iterator[Example | None]:
        for label, letter in enumerate(LETTERS):
            duplicates = Duplicates()
            for family, file in files:
                picture = draw(file, letter, size)
                split = VALIDATION if family == UNSEEN else TRAIN
                example = Example(f"{file} {letter}", {"images": picture}, label, split=split)
                yield None if duplicates.seen_before(picture) else example

    return Examples(len(LETTERS) * len(files), each())


def italic(size: int) -> Examples:
    """Input upright, target italic. A validation letter is held out in all faces of a family: they look alike."""
    pairs = [(face, letter) for face in FACES if face.italic for letter in LETTERS]
    out = held_out(f"{face.family} {letter}" for face, letter in pairs)
    faces()

    def each() -> Iterator[Example | None]:
        duplicates = Duplicates()
        for face, letter in pairs:
            upright, slanted = draw(face.file, letter, size), draw(face.italic, letter, size)
            group = f"{face.family} {letter}"
            split = VALIDATION if group in out else TRAIN
            pair = Example(f"{face.file} {letter}", {"input": upright, "target": slanted}, group=group, split=split)
            yield None if duplicates.seen_before(np.stack([upright, slanted])) else pair

    return Examples(len(pairs), each())


def faces() -> list[tuple[str, str]]:
    """(family, file) of every face, italic ones too. Raises NotFound if matplotlib lacks one."""
    files = [(face.family, file) for face in FACES for file in (face.file, face.italic) if file]
    for _, file in files:
        _path(file)
    return files


def draw(file: str, letter: str, size: int) -> np.ndarray:
    """uint8 (1, size, size)."""
    return _font(file, round(size * POINTS)).draw(letter, size, (size / 2, round(size * GROUND)), "ms")


@lru_cache(maxsize=64)
def _font(file: str, points: int) -> Font:
    return Font(_path(file), points)


def _path(file: str) -> Path:
    return file_of("matplotlib", f"{FOLDER}/{file}.ttf")
