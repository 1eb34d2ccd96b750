"""Characters of font files as pictures."""

from enum import Enum
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont


class Ink(Enum):
    """(ground, ink) in levels of gray."""

    DARK = (255, 0)
    BRIGHT = (0, 255)


class Font:
    def __init__(self, path: Path, points: int):
        # the plain layout: the other one depends on a library that is not always there
        self.font = ImageFont.truetype(str(path), points, layout_engine=ImageFont.Layout.BASIC)

    def draw(self, text: str, size: int, at: tuple[float, float], anchor: str, ink: Ink = Ink.BRIGHT) -> np.ndarray:
        """uint8 (1, size, size), with `anchor` of the text (as Pillow names it) at (x, y)."""
        ground, level = ink.value
        picture = Image.new("L", (size, size), ground)
        ImageDraw.Draw(picture).text(at, text, fill=level, font=self.font, anchor=anchor)
        return np.array(picture)[None]
