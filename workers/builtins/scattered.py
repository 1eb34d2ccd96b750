"""Objects pasted at random places on patches of photographs, with their boxes: data for detectors."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from app.core.catalog.builtins import SCATTERED
from workers.builtins import openmoji, photos
from workers.builtins.digits import mnist_arrays
from workers.builtins.examples import TRAIN, VALIDATION, Example, Examples

COUNTS = {TRAIN: 2000, VALIDATION: 500}
MOST = 4
SMALLEST, LARGEST = 0.22, 0.45
"""Longer side of an object, as a fraction of the image's side."""
MAX_OVERLAP = 0.1
"""Largest overlap of two boxes, as a fraction of the smaller."""
TRIES = 20

Thing = tuple[np.ndarray, np.ndarray, int]
"""Colours uint8 (3, H, W), opacity uint8 (H, W), class index; trimmed, so that no edge is fully transparent."""
Draw = Callable[[np.random.Generator, str, bool], Thing]
"""Takes a generator, the side of the split, and whether the background is bright."""


def digits(size: int) -> Examples:
    """MNIST digits, dark on a bright background and bright on dark; validation digits are never in training."""
    images, labels = mnist_arrays()
    validation = np.arange(len(images)) % 5 == 0
    rows = {VALIDATION: np.flatnonzero(validation), TRAIN: np.flatnonzero(~validation)}

    def draw(rng: np.random.Generator, split: str, bright: bool) -> Thing:
        row = rng.choice(rows[split])
        colour = rng.integers(0, 90, 3) if bright else rng.integers(165, 256, 3)
        ink = _trimmed(images[row, 0], images[row])
        paint = np.broadcast_to(colour.astype(np.uint8)[:, None, None], (3, *ink.shape[1:]))
        return paint, ink[0], int(labels[row])

    return _scattered(size, draw, "digits")


def emoji(size: int) -> Examples:
    """Ten emoji, drawn large and scaled down."""
    things = []
    for index, points in enumerate(SCATTERED.values()):
        pixels = openmoji.transparent(openmoji.drawing(points), 128)
        pixels = _trimmed(pixels[3], pixels)
        things.append((pixels[:3], pixels[3], index))
    return _scattered(size, lambda rng, split, bright: things[rng.integers(len(things))], "emoji")


def _scattered(size: int, draw: Draw, kind: str) -> Examples:
    """Backgrounds for validation come from blocks that are not in training. Each image depends only on its number."""

    pieces = photos.patches(size)

    def each() -> Iterator[Example]:
        grounds: dict[str, list[np.ndarray]] = {TRAIN: [], VALIDATION: []}
        for example in pieces.each:
            if example is not None:
                grounds[example.split].append(example.images["images"])
        for split, count in COUNTS.items():
            for number in range(count):
                rng = np.random.default_rng([*f"{kind} {split}".encode(), number, size])
                ground = grounds[split][rng.integers(len(grounds[split]))].copy()
                bright = bool(ground.mean() > 110)
                boxes = _paste(ground, rng, lambda rng=rng, split=split, bright=bright: draw(rng, split, bright))
                yield Example(f"{split}/{number}", {"images": ground}, split=split, boxes=boxes)

    return Examples(sum(COUNTS.values()), each())


def _paste(ground: np.ndarray, rng: np.random.Generator, draw: Callable[[], Thing]) -> list[tuple]:
    """Pastes one to four objects into `ground` (3, S, S), in place; returns their boxes."""
    size, boxes = ground.shape[1], []
    for _ in range(rng.integers(1, MOST + 1)):
        colours, opacity, label = draw()
        longest = rng.uniform(SMALLEST, LARGEST) * size
        scale = longest / max(opacity.shape)
        height, width = (max(3, round(side * scale)) for side in opacity.shape)
        for _ in range(TRIES):
            top, left = rng.integers(0, size - height + 1), rng.integers(0, size - width + 1)
            box = (float(left), float(top), float(left + width), float(top + height), label)
            if all(_shared(box, other) <= MAX_OVERLAP for other in boxes):
                break
        else:
            continue
        cover = _scaled(opacity, height, width)[None] / 255.0
        paint = np.stack([_scaled(band, height, width) for band in colours])
        piece = ground[:, top : top + height, left : left + width]
        piece[:] = np.rint(piece * (1 - cover) + paint * cover).astype(np.uint8)
        boxes.append(box)
    return boxes


def _trimmed(opacity: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """`pixels` (C, H, W) without edges that are almost transparent."""
    rows, columns = np.flatnonzero(opacity.max(1) > 40), np.flatnonzero(opacity.max(0) > 40)
    return np.ascontiguousarray(pixels[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _scaled(band: np.ndarray, height: int, width: int) -> np.ndarray:
    kernel = Image.Resampling.BOX if height < band.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(band)).resize((width, height), kernel))


def _shared(one: tuple, other: tuple) -> float:
    """Overlap of two boxes as a fraction of the smaller."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    sizes = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(0.0, across) * max(0.0, down) / min(sizes)
