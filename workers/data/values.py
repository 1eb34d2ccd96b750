"""Reads and checks labels, targets, ages and identities of an uploaded array."""

import numpy as np

from app.core.errors import InvalidDataset
from workers.data.npz import Array
from workers.data.rows import MAX_CLASSES, printable


def read_values(array: Array, column: str) -> list:
    """A value per image: a number for targets and ages, a whole number or a name for labels and identities."""
    values = array.whole()
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        remedy = "Use numpy.argmax(labels, axis=1)." if column == "labels" and values.ndim == 2 else None
        raise InvalidDataset(
            f"The array {array.name} must hold one value per image; it has the shape {list(values.shape)}.",
            remedy=remedy,
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidDataset(f"The array {array.name} holds NaN or infinity.")
    if column == "ages" and values.dtype.kind in "if" and values.size and values.min() < 0:
        raise InvalidDataset(
            f"The array {array.name} holds a negative age: {values.min():g}.", remedy="Remove those images."
        )
    return _numbers(array.name, values) if column in ("targets", "ages") else _names(array.name, values)


def _numbers(name: str, values: np.ndarray) -> list[float]:
    if values.dtype.kind not in "buif":
        raise InvalidDataset(f"The array {name} does not hold numbers but {values.dtype}.")
    if values.size and np.abs(values.astype(np.float64)).max() > 1e30:
        raise InvalidDataset(f"The array {name} holds numbers above 1e30 in size, too large for float32.")
    return values.astype(np.float64).tolist()


def _names(name: str, values: np.ndarray) -> list[int] | list[str]:
    if values.dtype.kind in "US":
        try:
            texts = values.tolist() if values.dtype.kind == "U" else np.char.decode(values, "utf-8").tolist()
        except Exception as error:  # numpy does not check characters before it decodes them
            raise InvalidDataset(f"The array {name} holds text that is not Unicode.") from error
        return [printable(text) for text in texts]
    if values.dtype.kind == "f" and (values != np.rint(values)).any():
        raise InvalidDataset(
            f"The array {name} must hold whole numbers or names; it has fractions.",
            remedy="Name the array targets if it holds measurements.",
        )
    return [int(value) for value in values.tolist()]


def name_classes(labels: list[int] | list[str], names: list[str] | None) -> list[str] | None:
    """The class names by index if the labels are indices; None if the labels are names."""
    if not labels or not all(isinstance(label, int) for label in labels):
        return None
    count = len(names) if names else MAX_CLASSES
    if min(labels) < 0 or max(labels) >= count:
        raise InvalidDataset(
            f"The labels go from {min(labels)} to {max(labels)}; "
            f"with {count} classes they must be from 0 to {count - 1}."
        )
    return names or [str(index) for index in range(max(labels) + 1)]
