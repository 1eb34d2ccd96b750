"""Pieces of photographs that come with scikit-image and scikit-learn, and the faces among scikit-image's samples."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from workers.builtins.examples import TRAIN, VALIDATION, Example, Examples, Seen, file_of, held_out

PHOTOS = {
    "skimage": "data/astronaut.png data/chelsea.png data/coffee.png data/rocket.jpg data/hubble_deep_field.jpg "
    "data/ihc.png data/retina.jpg data/motorcycle_left.png",
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}
LARGE = 1_000_000  # pixels; a photo with more is halved, or it would be most of the set
BLOCK, PIECES = 128, 20
SEED = 5


def patches(size: int) -> Examples:
    """A photo falls into blocks of 128 pixels, a block gives 20 pieces of size x size at random places inside it.

    Pieces of a block overlap, pieces of two blocks never do; one block in five of each photo is for validation.
    """
    files = [file_of(package, name) for package, names in PHOTOS.items() for name in names.split()]
    corners = {file: _corners(file) for file in files}

    def each() -> Iterator[Example | None]:
        seen = Seen()
        for file, blocks in corners.items():
            photo, out = _open(file), held_out(blocks)
            for name, (top, left) in blocks.items():
                block = photo[:, top : top + BLOCK, left : left + BLOCK]
                split = VALIDATION if name in out else TRAIN
                for place, piece in enumerate(_pieces(block, size, name)):
                    example = Example(f"{name}/{place}", {"images": piece}, group=name, split=split)
                    yield None if seen.before(piece) or piece.min() == piece.max() else example

    return Examples(PIECES * sum(map(len, corners.values())), each())


def faces() -> Examples:
    """The first hundred of LFW's small pictures; the second hundred are no faces."""
    pictures = np.rint(np.load(file_of("skimage", "data/lfw_subset.npy"))[:100] * 255).astype(np.uint8)
    return Examples(100, (Example(str(index), {"images": face[None]}) for index, face in enumerate(pictures)))


def _open(file: Path) -> np.ndarray:
    """uint8 (3, H, W)."""
    with Image.open(file) as photo:
        photo = photo.convert("RGB")
    if photo.width * photo.height > LARGE:
        photo = photo.reduce(2)
    return np.ascontiguousarray(np.asarray(photo).transpose(2, 0, 1))


def _corners(file: Path) -> dict[str, tuple[int, int]]:
    """(top, left) of the blocks by name, in the middle of the photo."""
    _, *sides = _open(file).shape
    rows, columns = (side % BLOCK // 2 + BLOCK * np.arange(side // BLOCK) for side in sides)
    return {f"{file.stem}/{top}/{left}": (int(top), int(left)) for top in rows for left in columns}


def _pieces(block: np.ndarray, size: int, name: str) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([SEED, *name.encode()])
    for _ in range(PIECES):
        top, left = rng.integers(0, BLOCK - size + 1, 2)
        yield np.ascontiguousarray(block[:, top : top + size, left : left + size])
