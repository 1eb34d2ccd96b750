"""Builders of uploads: pictures in every format, zips and npz files, and an import without a database."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from workers.data.importing import read_source
from workers.data.npz_rows import NpzSource
from workers.data.rows import Options, Report
from workers.data.stored import OpenDataset, open_dataset
from workers.data.zip_rows import ZipSource


def pixels(seed: int, height: int = 12, width: int = 12, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


def picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0)))


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(seed: int = 0, height: int = 12, width: int = 12, channels: int = 1, **options) -> bytes:
    return saved(picture(pixels(seed, height, width, channels)), **options)


def zip_file(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npz_file(path: Path, compress: bool = False, **arrays) -> Path:
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return path


def read(path: Path, **spec) -> tuple[OpenDataset, Report]:
    """Imports a file as the job does, and opens what it stored."""
    options, report = Options.read(spec), Report()
    source = (NpzSource if path.suffix == ".npz" else ZipSource)(path, options, report)
    published = read_source(source, options, report, lambda *_: None, lambda: None)
    return open_dataset(published.digest), report
