"""Claims about image-to-image translation: nearer to the truth than what needs no network, and true to the class."""

import numpy as np
import torch

from models.data import Columns
from models.evaluation.fidelity import Fidelity, kernel_distance
from models.evaluation.refinement import Domain, accuracy, small_classifier
from models.evaluation.translation import ROWS, evenly_spaced, in_batches
from models.types import DataSpec
from tests.benchmarks.claims import Found, Row, Subject, Target, Trained, at_least, at_most_times

LENGTH = {"pix2pix": 60, "cyclegan": 100, "cut": 100}  # epochs


def below_all(*but: str) -> Target:
    """Less than every baseline, those in `but` excepted."""
    text = "< every baseline" + (f" but {' and '.join(but)}" if but else "")
    return Target(
        text, lambda found: found.value < min(value for name, value in found.baselines.items() if name not in but)
    )


def of(run: Trained, prefix: str = "") -> dict[str, float]:
    """The same distance of what needs no network."""
    names = {"copy": "copied input", "mean": "mean target", "nearest": "nearest pair", "colour": "colour transfer"}
    found = {name: run.measured.get(f"{prefix}{key}_l1") for key, name in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def pix2pix_l1(subject: Subject) -> Found:
    run = subject.trained("pix2pix", {"effort": "full", "epochs": LENGTH["pix2pix"]})
    return Found(run.measured["l1"], of(run), run.note, run.short)


def lesson(family: str, prefix: str = ""):
    """The distance from the truth of a training with an empty config at effort lesson, beside its baselines."""

    def measure(subject: Subject) -> Found:
        run = subject.trained(family, {"effort": "lesson"})
        return Found(run.measured[f"{prefix}l1"], of(run, prefix), f"lesson, {run.note}", run.short)

    return measure


PIX2PIX_LESSON = Row(
    "pix2pix-lesson",
    "Pix2Pix at effort lesson, pairs of one theme: a fifth nearer to unseen targets than every baseline",
    "L1 per pixel",
    Target("<= 0.8 x every baseline", lambda found: found.value <= 0.8 * min(found.baselines.values())),
    lesson("pix2pix"),
    dataset="openmoji-faces",
    suits=lambda spec: spec.layout == "paired",
)

PIX2PIX_L1 = Row(
    "pix2pix-l1",
    "Pix2Pix: unseen pairs, mean absolute distance from the true target",
    "L1 per pixel",
    below_all(),
    pix2pix_l1,
    dataset="openmoji-line2color",
    suits=lambda spec: spec.layout == "paired",
)


def pix2pix_kid(subject: Subject) -> Found:
    """The whole objective and its L1 part alone, equally long; and what the baselines reach."""
    unseen, seen = evenly_spaced(subject.validation), evenly_spaced(subject.train)
    columns = [Columns({"images": side.columns["target"]}) for side in (subject.train, subject.validation)]
    measure = Fidelity(*columns, torch.device("cpu"))
    found = {"copied input": unseen["input"], "mean target": seen["target"].mean(0).expand_as(unseen["target"])}
    notes, short = [], False
    for name, weight, share in (("pix2pix", 1.0, 0.55), ("L1 alone", 0.0, 1.0)):
        run = subject.trained(
            "pix2pix", {"effort": "full", "epochs": LENGTH["pix2pix"], "lambda_adversarial": weight}, share
        )
        found[name] = in_batches(lambda part, model=run.model: model.translate(part, "ab"), unseen["input"])
        notes.append(f"{name}: {run.note}, L1 {run.measured['l1']:.4f}")
        short |= run.short
    distances = {name: kernel_distance(measure.rows(images), measure.reference) for name, images in found.items()}
    floor = kernel_distance(measure.rows(measure.train_images), measure.reference)
    notes.append(f"floor {floor:.4f}")
    return Found(distances.pop("pix2pix"), distances, "; ".join(notes), short)


PIX2PIX_KID = Row(
    "pix2pix-kid",
    "Pix2Pix: its pictures look more like real ones than those of its L1 term alone",
    "KID",
    below_all(),
    pix2pix_kid,
    dataset="openmoji-line2color",
    suits=lambda spec: spec.layout == "paired",
)


def twins(family: str, prefix: str):
    def measure(subject: Subject) -> Found:
        run = subject.trained(family, {"effort": "full", "epochs": LENGTH[family]})
        moved = run.measured[f"{prefix}moved_l1"]
        note = f"{run.note}; moves images by {moved:.4f}"
        return Found(run.measured[f"{prefix}l1"], of(run, prefix), note, run.short)

    return measure


def with_twins(spec: DataSpec) -> bool:
    return spec.layout == "unpaired" and spec.twins


CYCLEGAN_LESSON = Row(
    "cyclegan-lesson",
    "CycleGAN at effort lesson: a quarter nearer to the true twins than the copied input",
    "L1 per pixel",
    at_most_times(0.75, "copied input"),
    lesson("cyclegan", "ab_"),
    dataset="openmoji-flat",
    suits=with_twins,
)
CYCLEGAN_TWINS = Row(
    "cyclegan-twins",
    "CycleGAN: mean |G(a) - true twin| of images never seen in pairs",
    "L1 per pixel",
    below_all(),
    twins("cyclegan", "ab_"),
    dataset="openmoji-tone",
    suits=with_twins,
)
CUT_TWINS = Row(
    "cut-twins",
    "CUT, one generator: mean |G(a) - true twin| of images never seen in pairs",
    "L1 per pixel",
    below_all(),
    twins("cut", ""),
    dataset="openmoji-tone",
    suits=with_twins,
)


def tinted(images: np.ndarray) -> np.ndarray:
    """Grey (n, 1, h, w) -> dark violet figures on light yellow ground: inverted and coloured."""
    ground, figure = (np.array(colour).reshape(1, 3, 1, 1) for colour in ((250, 235, 140), (70, 20, 120)))
    share = images.astype(np.float64) / 255
    return np.rint(ground + (figure - ground) * share).astype(np.uint8)


def class_kept(subject: Subject) -> Found:
    """Half of the images stay as they are, the other half is inverted and coloured; no image is in both."""
    splits = []
    for side in (subject.train, subject.validation):
        images, labels = np.array(side.columns["images"]), np.array(side.columns["labels"])
        half = len(images) // 2
        order = np.random.default_rng(subject.seed).permutation(len(images))
        first, second = order[:half], order[half:]
        splits.append(
            {"a": images[first].repeat(3, 1), "b": tinted(images[second]), "b_labels": labels[second]}
            | {"a_labels": labels[first], "truth": tinted(images[first])}
        )
    shape = {"height": subject.spec.height, "width": subject.spec.width, "channels": 3}
    sides = dict(zip(("train", "validation"), splits, strict=True))
    rows = {name: {"a": len(split["a"]), "b": len(split["b"])} for name, split in sides.items()}
    spec = DataSpec("unpaired", **shape, columns=rows)
    train, validation = (Columns({name: split[name] for name in "ab"}) for split in splits)
    config = {"effort": "full", "epochs": 6, "width": 16}
    run = subject.trained("cyclegan", config, 0.8, train=train, validation=validation, spec=spec)
    learned = Domain(torch.from_numpy(splits[0]["b"]) / 255, torch.from_numpy(splits[0]["b_labels"]))
    judge, _ = small_classifier(learned, len(subject.spec.classes), subject.seed)
    labels = torch.from_numpy(splits[1]["a_labels"])[:ROWS]
    raw, truth = (torch.from_numpy(splits[1][name])[:ROWS] / 255 for name in ("a", "truth"))
    made = in_batches(lambda part: run.model.translate(part, "ab"), raw)
    shares = {name: accuracy(judge, Domain(x, labels)) for name, x in (("made", made), ("raw", raw), ("truth", truth))}
    away = [float((images - truth).abs().mean()) for images in (made, raw)]
    note = f"{run.note}; L1 from the truth {away[0]:.4f}, of the copied input {away[1]:.4f}"
    return Found(shares["made"], {"copied input": shares["raw"], "true twins": shares["truth"]}, note, run.short)


CLASS_KEPT = Row(
    "cyclegan-class",
    "CycleGAN from white-on-black to dark-on-colour, unpaired: the class is kept, says a classifier of the target",
    "share",
    at_least(0.95),
    class_kept,
    suits=lambda spec: spec.layout == "labelled" and spec.channels == 1,
)
