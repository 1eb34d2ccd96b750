"""Picture sheets of the demo: rows of images with captions. Images are uint8 (H, W) or (H, W, 3) arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL, GAP, CAPTION, MARGIN = 84, 6, 15, 92
INK, FADED, RED, PAPER = (20, 20, 20), (110, 110, 110), (200, 0, 0), (255, 255, 255)


def rows(
    path: Path,
    titles: Sequence[str],
    lines: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] = (),
    wrong: Sequence[Sequence[bool]] = (),
) -> None:
    """One line of images for each title, with its line of captions if there are any; those that are `wrong` in red."""
    height = CELL + GAP + (CAPTION if captions else 0)
    sheet = Image.new("RGB", (MARGIN + len(lines[0]) * (CELL + GAP), GAP + len(lines) * height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, (title, images) in enumerate(zip(titles, lines, strict=True)):
        top = GAP + row * height
        draw.multiline_text((GAP, top + CELL // 2 - 12), title, INK, font)
        for column, image in enumerate(images):
            left = MARGIN + column * (CELL + GAP)
            sheet.paste(enlarged(image), (left, top))
            if captions:
                draw.text((left + 2, top + CELL), captions[row][column], RED if wrong[row][column] else FADED, font)
    sheet.save(path)


def grid(path: Path, images: Sequence[np.ndarray], columns: int) -> None:
    """All images in a grid, row by row."""
    lines = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (CELL + GAP) + GAP, lines * (CELL + GAP) + GAP), PAPER)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(enlarged(image), (GAP + column * (CELL + GAP), GAP + row * (CELL + GAP)))
    sheet.save(path)


def enlarged(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image).convert("RGB").resize((CELL, CELL), Image.Resampling.NEAREST)
