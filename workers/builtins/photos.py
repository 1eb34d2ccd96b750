"""Patches of photographs from scikit-image and scikit-learn, and the faces among scikit-image's samples."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from workers.builtins.examples import TRAIN, VALIDATION, Duplicates, Example, Examples, file_of, held_out

PHOTOS = {
    "skimage": "data/astronaut.png data/chelsea.png data/coffee.png data/rocket.jpg data/hubble_deep_field.jpg "
    "data/ihc.png data/retina.jpg data/motorcycle_left.png",
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}
LARGE = 1_000_000  # pixels; larger photos are halved, or they would dominate the dataset
BLOCK, PIECES = 128, 20
SEED = 5


def patches(size: int) -> Examples:
    """Each photo is cut into blocks of 128 x 128 pixels; each block gives 20 patches of size x size at random places.

    Patches of one block overlap, patches of two blocks do not. One block in five of each photo is for validation.
    """
    files = [file_of(package, name) for package, names in PHOTOS.items() for name in names.split()]
    corners = {file: _corners(file) for file in files}

    def each() -> Iterator[Example | None]:
        duplicates = Duplicates()
        for file, blocks in corners.items():
            photo, out = _open(file), held_out(blocks)
            for name, (top, left) in blocks.items():
                block = photo[:, top : top + BLOCK, left : left + BLOCK]
                split = VALIDATION if name in out else TRAIN
                for place, piece in enumerate(_pieces(block, size, name)):
                    example = Example(f"{name}/{place}", {"images": piece}, group=name, split=split)
                    yield None if duplicates.seen_before(piece) or piece.min() == piece.max() else example

    return Examples(PIECES * sum(map(len, corners.values())), each())


def faces() -> Examples:
    """The first hundred images of the LFW subset; the second hundred are not faces."""
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
    """(top, left) of the blocks by name, centred in the photo."""
    _, *sides = _open(file).shape
    rows, columns = (side % BLOCK // 2 + BLOCK * np.arange(side // BLOCK) for side in sides)
    return {f"{file.stem}/{top}/{left}": (int(top), int(left)) for top in rows for left in columns}


def _pieces(block: np.ndarray, size: int, name: str) -> Iterator[np.ndarray]:
    rng = np.random.default_rng([SEED, *name.encode()])
    for _ in range(PIECES):
        top, left = rng.integers(0, BLOCK - size + 1, 2)
        yield np.ascontiguousarray(block[:, top : top + size, left : left + size])
