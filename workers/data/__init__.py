"""Datasets: archives to arrays, split, stored, and opened again. No image is decoded after this.

`open_dataset` gives the arrays to training; `ensure_builtin` brings in a built-in dataset.
"""

from workers.data.importing import ensure_builtin
from workers.data.stored import OpenDataset, images_page, open_dataset

__all__ = ["OpenDataset", "ensure_builtin", "images_page", "open_dataset"]
