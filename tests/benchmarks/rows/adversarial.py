"""Claims about generative adversarial networks: how near to real images, how varied, how obedient, at what cost."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from models.evaluation.feature_network import blurred
from models.evaluation.fidelity import Fidelity, frechet, gaussian_images
from tests.benchmarks.claims import Found, Row, Subject, Target, Trained, at_least, at_most_times, labelled
from workers.data.stored import OpenDataset

CONTROLS = ("floor", "blurred", "repeated")
"""Other real images; the same blurred; one of them over and over."""
SAMPLES = 10_000
STACKS = {"train": 20_000, "validation": 2_000}


def beside(run: Trained, name: str) -> dict[str, float]:
    return {control: run.measured[f"{name}_{control}"] for control in CONTROLS}


def coverage(run: Trained) -> str:
    found = {name: run.measured[name] for name in ("precision", "recall")}
    return ", ".join(f"{name} {value:.2f}" for name, value in found.items()) + f", {run.note}"


def distance(family: str, config: dict[str, Any], name: str = "fd"):
    """A measurement of `fd` or `kid` after training a family."""

    def measure(subject: Subject) -> Found:
        run = subject.trained(family, config)
        return Found(run.measured[name], beside(run, name), coverage(run), run.short)

    return measure


def drawable(spec) -> bool:
    return spec.layout in ("plain", "labelled", "attributes", "segmentation")


GAN_FIDELITY = Row(
    "gan-fidelity",
    "Samples of a GAN are nearly as close to unseen images as other real images are",
    "FD",
    at_most_times(3.3, "floor"),  # 8 beside a floor of 2.43, in a feature space of one's own
    distance("gan", {"images": 3_000_000, "width": 16}),
    suits=drawable,
)


PLAIN: dict[tuple, Trained] = {}
"""The plain GAN of a subject, for all rows that look at it."""


def lesson_gan(subject: Subject) -> Trained:
    key = subject.name, subject.seed, subject.minutes, subject.images
    if key not in PLAIN:
        PLAIN[key] = subject.trained("gan", {"effort": "lesson"}, share=0.4)
    return PLAIN[key]


def lesson_beside_gan(family: str):
    """A measurement of a family with an empty config at effort=lesson, beside `gan` likewise."""

    def measure(subject: Subject) -> Found:
        gan = lesson_gan(subject)
        run = subject.trained(family, {"effort": "lesson"})
        seen = {"gan": gan.measured["fd"], "recall": run.measured["recall"]}
        seen |= {name: run.measured[f"fd_{name}"] for name in ("floor", "gaussian", "blurred")}
        note = f"{coverage(run)}; {by_class(run)}; gan: {coverage(gan)}; {by_class(gan)}"
        return Found(run.measured["fd"], seen, note, run.short or gan.short)

    return measure


def by_class(run: Trained) -> str:
    found = run.measured
    if "class_fd" not in found:
        return "no classes"
    return f"class FD {found['class_fd']:.2f}, {found['confident']:.0%} of {found['confident_floor']:.0%} recognised"


NEAR_GAN = Target(
    "<= 2 x gan, recall >= 0.5",
    lambda found: found.value <= 2 * found.baselines["gan"] and found.baselines["recall"] >= 0.5,
)
STYLE_LESSON = Row(
    "style-gan-lesson",
    "A style GAN after a lesson (150 CPU s) is within twice the distance of a plain GAN (75 CPU s)",
    "FD",
    NEAR_GAN,
    lesson_beside_gan("style_gan"),
    suits=drawable,
)
PROGRESSIVE_LESSON = Row(
    "progressive-gan-lesson",
    "A GAN that grows is, after a lesson (150 CPU s), within twice the distance of a plain GAN (75 CPU s)",
    "FD",
    NEAR_GAN,
    lesson_beside_gan("progressive_gan"),
    suits=drawable,
)

KID = Row(
    "gan-kid-colour",
    "A GAN on colour pictures is nearer to unseen ones than their blurred twins, and than one picture repeated",
    "KID",
    Target(
        "<= blurred and repeated",
        lambda found: found.value <= min(found.baselines["blurred"], found.baselines["repeated"]),
    ),
    distance("gan", {"images": 1_000_000, "width": 16}, "kid"),
    dataset="openmoji",
    suits=lambda spec: drawable(spec) and spec.channels == 3,
)


def obeys(subject: Subject) -> Found:
    run = subject.trained("conditional_gan", {"images": 1_000_000, "width": 16})
    found = run.measured
    chance = 1 / len(subject.spec.classes)
    note = f"worst class {found['class_agreement_worst']:.2f}, FD {found['fd']:.1f} (floor {found['fd_floor']:.1f})"
    return Found(
        found["class_agreement"],
        {"real images": found["class_agreement_real"], "chance": chance},
        f"{note}, {run.note}",
        run.short,
    )


CGAN_OBEYS = Row(
    "cgan-obeys",
    "What a conditional GAN draws is taken for the class that was asked for, by a frozen classifier",
    "share of images",
    at_least(0.98),
    obeys,
    suits=labelled,
)


def obeys_after_a_lesson(subject: Subject) -> Found:
    run = subject.trained("conditional_gan", {"effort": "lesson"})
    found = run.measured
    seen = {"real images": found["class_agreement_real"], "worst class": found["class_agreement_worst"]}
    note = f"FD {found['fd']:.2f} (floor {found['fd_floor']:.2f}), {by_class(run)}, {coverage(run)}"
    return Found(found["class_agreement"], seen, note, run.short)


CGAN_LESSON = Row(
    "cgan-obeys-lesson",
    "After a lesson (75 CPU s) a conditional GAN draws the class that was asked for nearly as often as real "
    "images show theirs, and loses none",
    "share of images",
    Target(
        ">= real images - 0.02, worst class >= 0.5",
        lambda found: found.value >= found.baselines["real images"] - 0.02 and found.baselines["worst class"] >= 0.5,
    ),
    obeys_after_a_lesson,
    suits=labelled,
)


@torch.no_grad()
def order(subject: Subject) -> Found:
    """Spearman's correlation of the distances of damaged images with those of a classifier trained apart."""
    judge = Fidelity(subject.train, subject.validation, torch.device("cpu"), len(subject.spec.classes))
    with torch.enable_grad():
        run = subject.trained("classifier", {"images": 40_000})
    real, unseen = judge.train_images, judge.validation_images
    kinds, draws = judge.class_logits(real).argmax(1), torch.Generator().manual_seed(0)
    mixed = (real + real[torch.randperm(len(real), generator=draws)]) / 2
    smeared = blurred(blurred(real))
    damaged = {
        "real": real,
        "blur": blurred(real),
        "more blur": smeared,
        "noise": (real + 0.1 * torch.randn(real.shape, generator=draws)).clamp(0, 1),
        "one class lost": real[kinds != 0],
        "half of the classes": real[kinds < len(subject.spec.classes) / 2],
        "a quarter mixed in pairs": torch.where(torch.arange(len(real))[:, None, None, None] % 4 == 0, mixed, real),
        "mixed in pairs": mixed,
        "Gaussian": gaussian_images(real),
    }

    def outside(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([run.model.logits(part) for part in images.split(256)])

    reference = outside(unseen)
    wanted = [frechet(outside(images), reference) for images in damaged.values()]
    found = {name: [] for name in ("class_fd", "fd")}
    for images in damaged.values():
        measured = judge.report(images)
        for name, values in found.items():
            values.append(measured[name])
    by_name = {name: rank_correlation(values, wanted) for name, values in found.items()}
    note = f"the classifier is right on {run.measured['accuracy']:.1%} of unseen images; {len(damaged)} sets of images"
    return Found(by_name["class_fd"], {"FD": by_name["fd"]}, note, run.short)


def rank_correlation(first: list[float], second: list[float]) -> float:
    ranks = [torch.tensor(values).argsort().argsort().double() for values in (first, second)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


CLASS_ORDER = Row(
    "class-fd-order",
    "Class FD orders damaged images as a classifier trained apart does",
    "rank correlation",
    Target(">= 0.85, >= FD", lambda found: found.value >= max(0.85, found.baselines["FD"])),
    order,
    suits=labelled,
)


def growing(subject: Subject) -> Found:
    """The same networks twice over as many images: whole from the start, and grown."""
    config = {"images": 300_000, "width": 8, "widest": 64, "loss": "non_saturating"}
    whole = subject.trained("progressive_gan", config | {"fade_images": 0, "stabilise_images": 0}, share=0.55)
    grown = replace(subject, images=whole.training.images, minutes=1e6).trained("progressive_gan", config)
    share = grown.seconds / whole.seconds
    note = f"grown: {coverage(grown)}; whole: {coverage(whole)}"
    return Found(
        grown.measured["fd"],
        {"whole from the start": whole.measured["fd"], "CPU share": share, "floor": whole.measured["fd_floor"]},
        note,
        whole.short,
    )


PROGAN = Row(
    "progan-cheaper",
    "A GAN that grows is within 10 % of the one that does not, at 0.7 of its CPU time",
    "FD",
    Target(
        "<= 1.1 x whole from the start, CPU share <= 0.7",
        lambda found: (
            found.value <= 1.1 * found.baselines["whole from the start"] and found.baselines["CPU share"] <= 0.7
        ),
    ),
    growing,
    suits=drawable,
)


def stacked(subject: Subject) -> Subject:
    """Three random digits as the colours of one picture: a thousand modes, equally common (Metz et al. 2017)."""
    data, sides = subject.source.data, {}
    for side, count in STACKS.items():
        images = getattr(data, side)["images"]
        draws = np.random.default_rng(0)
        picked = draws.integers(0, len(images), (count, 3))
        sides[side] = {"images": np.stack([images[picked[:, index], 0] for index in range(3)], 1)}
    columns = {side: {"images": count} for side, count in STACKS.items()}
    facts = data.facts | {"layout": "plain", "channels": 3, "classes": None, "columns": columns}
    return replace(subject, source=replace(subject.source, data=OpenDataset(data.digest, facts, **sides)))


@torch.no_grad()
def modes(subject: Subject) -> Found:
    judge = Fidelity(subject.train, subject.validation, torch.device("cpu"), 10)
    labels = torch.from_numpy(np.array(subject.source.data.validation["labels"][: judge.count]))
    sure = float((judge.class_logits(judge.validation_images).argmax(1) == labels).double().mean())

    def counted(images: torch.Tensor) -> int:
        digits = torch.stack([judge.class_logits(images[:, index : index + 1]).argmax(1) for index in range(3)])
        return len((digits * torch.tensor([[100], [10], [1]])).sum(0).unique())

    stack = stacked(subject)
    with torch.enable_grad():
        run = stack.trained("gan", {"images": 2_000_000, "width": 16, "loss": "relativistic"})
    real = counted(stack.train.rows(torch.arange(SAMPLES))["images"])
    found = counted(run.model.sample_on_host(SAMPLES, run.training.context("modes")))
    note = f"{SAMPLES} samples, judged by a classifier right on {sure:.1%} of unseen digits, {run.note}"
    return Found(found, {"real stacks": real, "one digit repeated": 1}, note, run.short)


STACKED = Row(
    "stacked-modes",
    "A GAN on stacked digits reaches all of the thousand modes",
    "modes of 1000",
    at_least(1000),
    modes,
    suits=lambda spec: labelled(spec) and spec.channels == 1 and len(spec.classes) == 10,
)
