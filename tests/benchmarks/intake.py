"""How fast bytes become arrays: `python -m tests.benchmarks.intake [--images 60000]`.

Prints the import of a zip of small PNGs, of an npz and of a zip of photos, each in a process of its own with its peak
memory, and the codecs against Pillow in microseconds per image (the best of several rounds).
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from workers import codecs

SHAPES = [(1, 28, 28), (3, 64, 64), (3, 256, 256)]


def picture(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth shapes with a little noise: compresses like a drawing, unlike pure noise."""
    channels, height, width = shape
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(rng.uniform(2, 9) * x + rng.uniform(2, 9) * y + rng.uniform(0, 6)) for _ in range(channels)]
    noise = rng.integers(0, 12, (channels, height, width))
    return (np.stack(waves).clip(0, 1) * 240 + noise).astype(np.uint8)


def to_pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def pillow_bytes(image: np.ndarray, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    to_pillow(image).save(file, format, **options)
    return file.getvalue()


def write_png_zip(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    base = np.stack([picture(rng, (1, 28, 28)) for _ in range(500)])
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(count):
            shifted = np.roll(base[index % 500], index // 500, axis=-1)
            archive.writestr(f"{index % 10}/{index}.png", codecs.encode_png(shifted[None])[0])


def write_npz(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), labels=np.arange(count) % 10)


def write_photo_zip(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    photos = [pillow_bytes(picture(rng, (3, 1200, 1600)), "JPEG", quality=85) for _ in range(8)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index in range(count):
            archive.writestr(f"{index}.jpg", photos[index % 8])


def read_one(path: Path, image_size: str) -> None:
    """Imports one file in this process and prints how long it took."""
    from workers.data.importing import read_source
    from workers.data.npz_rows import NpzSource
    from workers.data.rows import Options, Report
    from workers.data.zip_rows import ZipSource

    options, report = Options.read({"image_size": image_size or None}), Report()
    started, busy = time.perf_counter(), time.process_time()
    source = (NpzSource if path.suffix == ".npz" else ZipSource)(path, options, report)
    published = read_source(source, options, report, lambda *_: None, lambda: None)
    seconds = time.perf_counter() - started
    rows = sum(side.get("images", 0) for side in published.facts["columns"].values())
    busy = time.process_time() - busy
    # not getrusage: its maximum starts with that of the process we were forked from
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(
        f"{path.name:11} {path.stat().st_size / 1e6:6.1f} MB {rows:6} images {seconds:7.2f} s "
        f"({busy:.2f} s of processor), peak {peak:.0f} MiB"
    )


def best_of(function: Callable[[], object], count: int, rounds: int = 7) -> float:
    """Microseconds per image."""
    best = float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best / count * 1e6


def time_codecs() -> None:
    print("\nmicroseconds per image      decode  Pillow   |  encode  Pillow (default)   bytes  Pillow")
    for shape in SHAPES:
        time_shape(shape, 64 if shape[1] < 256 else 16)


def time_shape(shape: tuple[int, int, int], count: int) -> None:
    rng = np.random.default_rng(0)
    images = np.stack([picture(rng, shape) for _ in range(count)])
    files = [pillow_bytes(image) for image in images]
    facts = dict(zip(("channels", "height", "width"), shape, strict=True))
    decode = best_of(lambda: codecs.decode_batch(facts, files), count)
    pillow = best_of(lambda: [np.asarray(Image.open(io.BytesIO(data))) for data in files], count)
    encode = best_of(lambda: codecs.encode_png(images), count)
    saved = best_of(lambda: [pillow_bytes(image) for image in images], count)
    ours, theirs = (sum(map(len, each)) / count for each in (codecs.encode_png(images), files))
    size = "x".join(map(str, shape))
    print(f"{size:25} {decode:8.1f} {pillow:7.1f}   |{encode:8.1f} {saved:17.1f} {ours:7.0f} {theirs:7.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_one(arguments.read, arguments.size)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_png_zip(root / "small.zip", arguments.images)
        write_npz(root / "small.npz", arguments.images)
        write_photo_zip(root / "photos.zip", arguments.photos)
        for name, size in (("small.zip", ""), ("small.npz", ""), ("photos.zip", "64")):
            command = [sys.executable, "-m", "tests.benchmarks.intake", "--read", root / name, "--size", size]
            environment = os.environ | {"ANAMORPH_DATA_DIR": str(root / name.replace(".", "-"))}
            subprocess.run(command, check=True, env=environment)
    time_codecs()


if __name__ == "__main__":
    main()
