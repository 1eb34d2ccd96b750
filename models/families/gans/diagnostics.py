"""What goes wrong with adversarial trainings: how it is told from numbers, its cause, its remedy.

Images here are rows in [0, 1]; every judgement is on at most as many of them as the doctor's probe has.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.data import Columns
from models.diagnosis import Alarm, Reading

IGNORANT = {"minimax": 1.386, "non_saturating": 1.386, "least_squares": 0.25, "hinge": 2.0, "relativistic": 0.693}
"""D's loss while it cannot tell; that of a Wasserstein critic has no such mark."""
WON = 0.05
"""Share of that loss at which D has won."""
ALIKE, DUPLICATE = 0.4, 0.2
"""Mean and nearest distance among samples, as shares of those among real images: less is a collapse."""
OVERFIT, DEVIATIONS = 0.6, 3.0
"""Share of the way from training images to samples at which D sees unseen images, and how sure that must be."""
COPY, COPIES = 0.5, 0.2
"""A sample is a copy when a training image is this much nearer than the next; so many copies are an alarm."""
EXPLODED = 100.0
WORSE = 1.5
KNOWN, SIDE = 4096, 16


def from_scalars(loss: str, now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    """What the curves alone betray."""
    yield from unfinite(now)
    yield from exploding(now, before)
    yield from too_strong(loss, now, before)
    yield from worsening(now, before)


def unfinite(now: Reading) -> Iterator[Alarm]:
    share = now.metrics.get("gradient_nonfinite", 0.0)
    if share > 0:
        yield Alarm(
            "non-finite-gradients",
            f"In {share:.1%} of the updates a gradient was infinite or not a number; these updates were left out.",
            "Lower learning_rate or the weight of the penalties.",
            {"share": share},
        )


def exploding(now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    for player in ("generator", "discriminator"):
        name = f"gradient_{player}"
        past = [found.metrics[name] for found in before if name in found.metrics]
        if len(past) >= 3 and now.metrics.get(name, 0.0) > EXPLODED * (usual := sorted(past)[len(past) // 2]) > 0:
            yield Alarm(
                f"exploding-{player}",
                f"The gradient of the {player} is {now.metrics[name]:.3g} long, and was {usual:.3g} before.",
                "Lower learning_rate, or raise r1.",
                {"length": now.metrics[name], "usual": usual},
            )


def too_strong(loss: str, now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    """D hardly errs any more, now and at the look before: what G learns from is nearly nothing."""
    if loss not in IGNORANT or not before:
        return
    mark = WON * IGNORANT[loss]
    losses = [found.metrics.get("loss_discriminator", IGNORANT[loss]) for found in (before[-1], now)]
    if max(losses) < mark:
        yield Alarm(
            "discriminator-too-strong",
            f"The discriminator's loss is {losses[1]:.3g}; while it cannot tell it is {IGNORANT[loss]:.3g}. "
            "The generator has nothing to follow.",
            "Lower discriminator_learning_rate, raise r1, or add instance_noise or label_smoothing.",
            {"loss_discriminator": losses[1], "ignorant": IGNORANT[loss], "d_fake": now.metrics.get("d_fake", 0.0)},
        )


def worsening(now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    """The distance from real images has left its best by half."""
    past = [(found.metrics["fd"], found.images) for found in before if "fd" in found.metrics]
    if past and now.metrics.get("fd", 0.0) > WORSE * min(past)[0] + now.metrics.get("fd_floor", 0.0):
        best, at = min(past)
        yield Alarm(
            "getting-worse",
            f"FD was {best:.3g} after {at} images and is {now.metrics['fd']:.3g} now.",
            f"Train for about {at} images, or fork from there with a lower learning_rate.",
            {"fd": now.metrics["fd"], "best_fd": best, "best_images": at},
        )


def spread(images: Tensor) -> tuple[float, float]:
    """The mean distance among images (n, c, h, w), and the median distance to the nearest other."""
    rows = images.flatten(1)
    table = torch.cdist(rows, rows)
    count = len(rows)
    nearest = table.clone().fill_diagonal_(float("inf")).amin(1).median()
    return float(table.sum() / (count * (count - 1))), float(nearest)


def collapsed(samples: Tensor, reals: Tensor) -> Iterator[Alarm]:
    """Samples that differ much less than real images do, all together or in a few groups."""
    if len(reals) < 4:
        return
    (mean, near), (real_mean, real_near) = spread(samples[: len(reals)]), spread(reals)
    if real_near > 0 and (mean < ALIKE * real_mean or near < DUPLICATE * real_near):
        yield Alarm(
            "mode-collapse",
            f"Samples differ by {mean / real_mean:.0%} of what real images differ by, and each has another at "
            f"{near / real_near:.0%} of the usual distance: the generator makes few different images.",
            "Raise r1, turn minibatch_stddev on, lower learning_rate, or fork from a point before this one.",
            {"distance": mean, "real_distance": real_mean, "nearest": near, "real_nearest": real_near},
        )


def overfitted(trained: Tensor, unseen: Tensor, made: Tensor) -> Iterator[Alarm]:
    """D's logits of training images, images kept from it and samples (Karras et al. 2020, eq. 1: r_v)."""
    way = float(trained.mean() - made.mean())
    gap = float(trained.mean() - unseen.mean())
    error = float((trained.var() / len(trained) + unseen.var() / len(unseen)).sqrt()) if len(unseen) > 1 else 0.0
    if way > 0 and error > 0 and gap / way > OVERFIT and gap > DEVIATIONS * error:
        yield Alarm(
            "discriminator-overfits",
            f"The discriminator takes images it was not trained on for generated ones: {gap / way:.0%} of the way "
            "from training images to samples. It knows the training images by heart.",
            "Set augment to adaptive, raise r1, use a smaller width, or use more data.",
            {"trained": float(trained.mean()), "unseen": float(unseen.mean()), "made": float(made.mean())},
        )


def small(images: Tensor) -> Tensor:
    """Rows of images scaled down to at most 16 pixels a side: a copy is one at any size."""
    height, width = (min(SIDE, side) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images, (height, width)).flatten(1)


def known_rows(train: Columns, device: torch.device) -> Tensor:
    """At most 4096 training images, spaced evenly, as `small` rows."""
    count = len(train.columns["images"])
    chosen = torch.arange(count) if count <= KNOWN else torch.linspace(0, count - 1, KNOWN).long()
    return torch.cat([small(train.rows(part, ["images"])["images"].to(device)) for part in chosen.split(256)])


def copies(images: Tensor, known: Tensor) -> float:
    """Share of images (n, c, h, w) with a nearest known row far nearer than the second (a copy, not a likeness)."""
    nearest = torch.cdist(small(images), known).topk(2, largest=False)[0]
    return float((nearest[:, 0] < COPY * nearest[:, 1]).double().mean())


def memorised(samples: Tensor, reals: Tensor, known: Tensor) -> Iterator[Alarm]:
    """Samples that are training images, more of them than of the images kept from training."""
    if len(known) < 3:
        return
    share, usual = copies(samples, known), copies(reals, known)
    if share > usual + COPIES:
        yield Alarm(
            "memorising",
            f"{share:.0%} of the samples are copies of training images; of unseen images {usual:.0%} look so.",
            "Set augment to adaptive or diff, train shorter, use a smaller width, or use more data.",
            {"copies": share, "copies_unseen": usual},
        )
