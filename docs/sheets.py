"""Writes the contact sheets of docs/pictures/models: what each family makes of an empty config at an effort.

    python docs/sheets.py [--effort lesson] [--dataset NAME] [--images N] [FAMILY ...]

trains each family (default: all) in this process as a job would, on a built-in dataset that suits it, and writes
FAMILY-EFFORT.png. Below each picture stand the dataset, the training's length, its CPU time and the main metrics.
Then docs/guides/train.md shows all pictures.
`--images` shortens the trainings, for trying this command; such pictures go to `--into`.
"""

import argparse
import io
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from app.core.store.keys import LOCAL
from models.capabilities import Conditional, HasPrior, takes_labels
from models.data import Columns
from models.family import Family
from models.operations.core.base import Operation
from models.registry import families, operations
from models.seeds import derive
from models.training.loop import Training
from models.types import DataSpec
from tests.benchmarks.place import own_place
from workers.store.dataset_cache import DatasetCache
from workers.store.training_data import open_source

FOLDER = Path(__file__).with_name("pictures") / "models"
GUIDE = Path(__file__).with_name("guides") / "train.md"
MARKS = "<!-- sheets -->", "<!-- end of sheets -->"
MOST_BYTES = 150_000
WIDTH, MARGIN, TEXT = 896, 6, 13
DATASETS = {
    "age_cgan": "openmoji-people",
    "cut": "openmoji-tone",
    "cyclegan": "openmoji-tone",
    "detector": "scattered-emoji",
    "pix2pix": "icons-outline2fill",
    "refiner": "fontdigits-mnist",
    "segmenter": "openmoji-seg",
}
"""mnist5k for the others."""
GROUPS = {
    "cut": ("input", "translated"),
    "cyclegan": ("input", "translated", "and back"),
    "denoising_autoencoder": ("image", "noisy", "denoised"),
    "detector": ("true boxes", "detected"),
    "pix2pix": ("input", "translated", "target"),
    "refiner": ("simulated", "refined"),
    "segmenter": ("image", "true mask", "predicted"),
}
"""What follows what in a snapshot of the family; the autoencoders': image and reconstruction."""
METRICS = (
    *("accuracy", "accuracy_linear", "miou", "miou_majority", "map50", "map50_mean_boxes", "mae", "mae_mean"),
    *("psnr", "psnr_noisy", "psnr_median", "mse", "mse_pca", "nelbo", "l1", "l1_mean_target", "l1_copied"),
    *("accuracy_refined", "accuracy_raw", "labels_kept", "class_agreement", "fd", "fd_floor", "fd_blurred"),
)
"""Main metrics and what stands beside them; the first four that a family has are written."""
Rows = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Trained:
    """A finished training: its model in eval mode, the metrics, and the CPU seconds of its updates."""

    training: Training
    metrics: dict[str, float]
    seconds: float
    dataset: str

    @property
    def model(self) -> Family:
        return self.training.family


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--effort", default="lesson", choices=["lesson", "good", "full"])
    parser.add_argument("--dataset", help="another built-in dataset")
    parser.add_argument("--images", type=int)
    parser.add_argument("--into", type=Path, default=FOLDER)
    options = parser.parse_args()
    if unknown := set(options.families) - families().keys():
        parser.error(f"unknown families: {', '.join(sorted(unknown))}")
    if options.images and options.into == FOLDER:
        parser.error("--images needs --into")
    torch.set_num_threads(1)
    options.into.mkdir(parents=True, exist_ok=True)
    with own_place():
        for name in options.families or families():
            config = {"effort": options.effort} | ({"images": options.images} if options.images else {})
            trained = train(name, options.dataset or DATASETS.get(name, "mnist5k"), config)
            size = write(options.into / f"{name}-{options.effort}.png", sheet(trained))
            print(f"{caption(trained)}  ({size // 1000} KB)", flush=True)
    if options.into == FOLDER:
        GUIDE.write_text(with_gallery(GUIDE.read_text()))


def with_gallery(page: str) -> str:
    """The guide with the pictures that there are, between its two marks."""
    pictures = sorted(FOLDER.glob("*.png"))
    lines = [f"**{file.stem}**\n\n![{file.stem}](../pictures/models/{file.name})" for file in pictures]
    before, _, rest = page.partition(MARKS[0])
    return "\n\n".join([before + MARKS[0], *lines, MARKS[1] + rest.partition(MARKS[1])[2]])


def train(name: str, dataset: str, config: dict, seed: int = 0) -> Trained:
    """As workers/jobs/kinds/training.py does it."""
    source = open_source(None, LOCAL, dataset)
    spec, rows = DataSpec.from_facts(source.data.facts), [source.data.train, source.data.validation]
    if name == "regressor":  # the share of ink: no built-in dataset has numbers
        rows = [
            {**side, "targets": np.asarray(side["images"]).mean((1, 2, 3), dtype=np.float32) / 2.55} for side in rows
        ]
        spec = replace(
            spec, columns={side: {**names, "targets": names["images"]} for side, names in spec.columns.items()}
        )
    torch.manual_seed(derive(seed, "init"))
    family = families()[name].create(config, spec)
    training = Training(family, Columns(rows[0], DatasetCache(source.data.digest)), Columns(rows[1]), seed)
    started = time.process_time()
    for _ in training.run():
        pass
    seconds = time.process_time() - started
    metrics = training.finish()
    family.eval().requires_grad_(False)
    return Trained(training, metrics, seconds, dataset)


# What is shown


def sheet(trained: Trained) -> Image.Image:
    """The picture of a family."""
    model, name = trained.model, trained.model.name
    if name == "classifier":
        return classified(trained)
    if name == "regressor":
        return estimated(trained)
    if name == "age_cgan":
        return table(grouped(shown(trained), ("face", *model.age_groups)), caption(trained))
    if name == "cyclegan":
        ways = shown(trained).tensor_split([3 * min(8, len(trained.training.validation.columns["a"]))])
        rows = [row for pictures in ways for row in grouped(pictures, GROUPS[name])]
        return table(rows, caption(trained))
    rows = []
    if name in GROUPS or not isinstance(model, HasPrior) or hasattr(model, "encode"):
        rows += grouped(shown(trained), GROUPS.get(name, ("image", "reconstruction")))
    if "samples" in supported(model) and name != "denoising_autoencoder":
        rows += sampled(model, 2 if rows else 8)
    return table(rows, caption(trained))


def supported(model: Family) -> list[str]:
    return [name for name, operation in operations().items() if operation.fits(type(model))]


@torch.no_grad()
def shown(trained: Trained) -> Tensor:
    """The family's snapshot of validation images of all classes."""
    training = trained.training
    return trained.model.snapshot(training.validation.spaced(16), training.context("snapshot"))


def grouped(pictures: Tensor, names: Sequence[str]) -> Rows:
    """A row for each name, of pictures (n * names, C, H, W) that follow each other in this order."""
    groups = pictures.unflatten(0, (-1, len(names)))
    return [(name, groups[:, index]) for index, name in enumerate(names)]


def sampled(model: Family, count: int, columns: int = 16) -> Rows:
    """Rows of samples; a row for each class of a conditional model."""
    if isinstance(model, Conditional) and takes_labels(model) and model.data.classes:
        return [
            (str(label), samples(model, n=columns, label=index)) for index, label in enumerate(model.data.classes[:12])
        ]
    pictures = samples(model, n=count * columns)
    return [("samples" if not row else "", part) for row, part in enumerate(pictures.split(columns))]


@torch.inference_mode()
def samples(model: Family, **params) -> Tensor:
    operation: Operation = operations()["samples"]()
    asked = operation.Params(**params)
    rows = operation.rows(model, None, asked)
    return operation.answer(model, rows, operation.compute(model, rows, asked), asked).images


@torch.inference_mode()
def classified(trained: Trained, columns: int = 16) -> Image.Image:
    """Images with predicted class and confidence, wrong ones in red, and the confusion of the validation images."""
    model, held = trained.model, trained.training.validation.spaced(1000)
    images, labels, classes = held["images"], held["labels"], model.data.classes
    shares, predicted = torch.cat([model.logits(part) for part in images.split(250)]).softmax(1).max(1)
    wrong = (predicted != labels).nonzero()[:, 0].tolist()[:columns]
    spaced = torch.linspace(0, len(labels) - 1, 3 * columns).long().tolist()
    notes = [
        (f"{classes[predicted[row]]} {100 * float(shares[row]):.0f}", bool(predicted[row] != labels[row]))
        for row in [*spaced, *wrong]
    ]
    rows = [("", images[part]) for part in torch.tensor(spaced).split(columns)]
    rows += [("wrong", images[wrong])] if wrong else []
    top = table([("images", rows[0][1]), *rows[1:]], "", notes=notes, columns=columns)
    counts = torch.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2).view(len(classes), -1)
    return stacked([top, confusion(counts.tolist(), classes)], caption(trained))


def confusion(counts: list[list[int]], classes: Sequence[str]) -> Image.Image:
    """Rows are true classes, columns predictions."""
    cell, left = 44, 120
    picture = Image.new("RGB", (left + cell * len(classes) + MARGIN, 20 + 20 * (len(classes) + 1)), "white")
    draw, most = ImageDraw.Draw(picture), max(map(max, counts)) or 1
    draw.text((MARGIN, 6), "true \\ predicted", "black", font())
    for row, values in enumerate(counts):
        draw.text((MARGIN, 26 + 20 * row), str(classes[row])[:16], "black", font())
        draw.text((left + cell * row + 4, 6), str(classes[row])[:6], "black", font())
        for column, count in enumerate(values):
            place = (left + cell * column, 24 + 20 * row)
            shade = 255 - round(200 * (count / most) ** 0.5)
            colour = (shade, shade, 255) if row == column else (255, shade, shade)
            draw.rectangle((*place, place[0] + cell - 2, place[1] + 18), colour)
            if count:
                draw.text((place[0] + 4, place[1] + 2), str(count), "black", font())
    return picture


@torch.inference_mode()
def estimated(trained: Trained, columns: int = 16) -> Image.Image:
    """Images with the estimate and the truth, and a scatter of both over the validation images."""
    model, held = trained.model, trained.training.validation.spaced(1000)
    truth = held["targets"]
    operation: Operation = operations()["estimate"]()
    asked = operation.Params()
    rows = operation.rows(model, held["images"], asked)
    items = operation.answer(model, rows, operation.compute(model, rows, asked), asked).facts["items"]
    values = [float(item["value"]) for item in items]
    spaced = torch.linspace(0, len(truth) - 1, 2 * columns).long()
    notes = [(f"{values[row]:.1f} ({float(truth[row]):.1f})", False) for row in spaced.tolist()]
    top = table([("images", held["images"][part]) for part in spaced.split(columns)], "", notes=notes)
    side, low, high = 360, float(truth.min()), float(truth.max())
    picture = Image.new("RGB", (side + 60, side + 40), "white")
    draw = ImageDraw.Draw(picture)

    def place(value: float) -> float:
        return 10 + (side - 20) * min(1.0, max(0.0, (value - low) / (high - low)))

    draw.rectangle((40, 4, 40 + side, 4 + side), outline="grey")
    draw.line((40 + place(low), 4 + side - place(low), 40 + place(high), 4 + side - place(high)), "grey")
    for value, true in zip(values, truth.tolist(), strict=True):
        x, y = 40 + place(true), 4 + side - place(value)
        draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(40, 80, 200))
    draw.text((40, side + 8), f"true share of ink, {low:.0f} to {high:.0f} %; upwards: estimated", "black", font())
    return stacked([top, picture], caption(trained))


def caption(trained: Trained) -> str:
    config, known = trained.model.config, trained.metrics
    chosen = [f"{name} {known[name]:.4g}" for name in METRICS if known.get(name) is not None][:4]
    return (
        f"{trained.model.name} on {trained.dataset}, effort {config.effort}: {trained.training.images:,} images, "
        f"{trained.seconds:.0f} CPU s; {', '.join(chosen) or 'no metrics'}"
    )


# How it is drawn


def font() -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(TEXT)


def table(rows: Rows, below: str, notes: list[tuple[str, bool]] = (), columns: int = 16) -> Image.Image:
    """Rows of at most `columns` pictures with their names at the left, and notes (text, red) below the pictures."""
    left = 8 + max([round(font().getlength(name)) for name, _ in rows])
    side = max(rows[0][1].shape[2:])
    columns = min(columns, 8 if side >= 48 else columns, max(len(pictures) for _, pictures in rows))
    scale = max(1, round((WIDTH - left) / columns / (side + 2)))
    step, line = scale * (side + 2), 16 if notes else 0
    picture = Image.new("RGB", (left + step * columns + MARGIN, MARGIN + (step + line) * len(rows)), "white")
    draw, remaining = ImageDraw.Draw(picture), list(notes)
    for row, (name, pictures) in enumerate(rows):
        top = MARGIN + row * (step + line)
        draw.text((4, top + step // 2 - TEXT // 2), name, "black", font())
        for column, pixels in enumerate(pictures[:columns]):
            place = left + step * column
            picture.paste(enlarged(pixels, scale), (place, top))
            if remaining:
                text, red = remaining.pop(0)
                draw.text((place, top + step - 3), text, "red" if red else "black", ImageFont.load_default(11))
    return stacked([picture], below) if below else picture


def enlarged(pixels: Tensor, scale: int) -> Image.Image:
    """(C, H, W) in [0, 1], each pixel as scale x scale."""
    values = (pixels.detach().cpu().clamp(0, 1) * 255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values)).resize((values.shape[1] * scale, values.shape[0] * scale), 0)


def stacked(parts: list[Image.Image], below: str) -> Image.Image:
    """Pictures one above the other, with a line of text below, wrapped to their width."""
    width = max(part.width for part in parts)
    lines = wrapped(below, width - 2 * MARGIN)
    height = sum(part.height for part in parts)
    picture = Image.new("RGB", (width, height + (TEXT + 4) * len(lines) + MARGIN), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height
    for line in lines:
        ImageDraw.Draw(picture).text((MARGIN, top), line, "black", font())
        top += TEXT + 4
    return picture


def wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font().getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def write(file: Path, picture: Image.Image) -> int:
    """As a PNG with a palette, of as many colours as fit into MOST_BYTES; returns its size."""
    for colours in (256, 128, 64, 32, 16):
        out = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= MOST_BYTES:
            break
    file.write_bytes(out.getvalue())
    return out.tell()


if __name__ == "__main__":
    main()
