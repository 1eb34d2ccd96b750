"""Simulated handwritten digits: printed digits, rotated and slanted, then normalised as in MNIST."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from app.core.catalog.builtins import DIGITS
from workers.builtins.digits import mnist_arrays
from workers.builtins.examples import Duplicates, Example, Examples
from workers.builtins.glyphs import draw, faces

DRAWN, SIDE, BOX = 128, 28, 20
VARIANTS = 20
TURN, SLANT = np.deg2rad(12), 0.25


def fontdigits() -> Examples:
    """Faces of a font family are near copies. The first variant of each digit of each face is as printed."""
    return _digits("images")


def fontdigits_mnist() -> Examples:
    """a: simulated, b: real. Order and groups are those of the two datasets, so both split the same way.

    The digits are in a_labels and b_labels, which no translation model reads.
    """
    simulated = _digits("a")
    real, labels = mnist_arrays()

    def each() -> Iterator[Example | None]:
        yield from simulated.each
        pairs = zip(real, labels.tolist(), strict=True)
        yield from (Example(f"mnist {index}", {"b": image}, label) for index, (image, label) in enumerate(pairs))

    return Examples(simulated.total + len(real), each())


def _digits(column: str) -> Examples:
    files = faces()

    def each() -> Iterator[Example | None]:
        duplicates = Duplicates()
        for place, (family, file) in enumerate(files):
            for label, digit in enumerate(DIGITS):
                printed = draw(file, digit, DRAWN)[0]
                for variant in range(VARIANTS):
                    rng = np.random.default_rng((place, label, variant))
                    picture = normalised(bent(printed, rng) if variant else printed)[None]
                    example = Example(f"{file} {digit}/{variant}", {column: picture}, label, group=family)
                    yield None if duplicates.seen_before(picture) else example

    return Examples(len(files) * len(DIGITS) * VARIANTS, each())


def bent(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (H, W), randomly rotated and slanted about the centre."""
    turn, slant = rng.uniform(-TURN, TURN), rng.uniform(-SLANT, SLANT)
    turning = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    back = turning @ np.array([[1, slant], [0, 1]])  # from (x, y) in the new image to (x, y) in the old one
    middle = (np.array(picture.shape[::-1]) - 1) / 2
    shift = middle - back @ middle
    numbers = (*back[0], shift[0], *back[1], shift[1])
    size = picture.shape[::-1]
    return np.asarray(
        Image.fromarray(picture).transform(size, Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)
    )


def normalised(picture: np.ndarray) -> np.ndarray:
    """uint8 (28, 28) as in MNIST: the longer side of the ink is 20 pixels, its centre of mass at (14, 14)."""
    rows, columns = np.nonzero(picture)
    ink = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.LANCZOS))
    mass = small / small.sum()
    middle = (mass.sum(1) @ np.arange(height), mass.sum(0) @ np.arange(width))
    top, left = (
        int(np.clip(round(SIDE / 2 - at), 0, SIDE - side)) for at, side in zip(middle, small.shape, strict=True)
    )
    placed = np.zeros((SIDE, SIDE), np.uint8)
    placed[top : top + height, left : left + width] = small
    return placed
