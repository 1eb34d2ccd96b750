"""Datasets: imports archives as arrays, splits and stores them, and opens them again.

`open_dataset` returns the arrays of a stored dataset; `ensure_builtin` imports a built-in dataset if it is missing.
"""

from workers.data.importing import ensure_builtin
from workers.data.stored import OpenDataset, images_page, open_dataset

__all__ = ["OpenDataset", "ensure_builtin", "images_page", "open_dataset"]
