"""Alarms of GAN trainings: how each is detected from metrics, samples and logits, its cause and its remedy.

Images are (n, c, h, w) in [0, 1], at most as many as the probe of the training monitor has.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.data import Columns
from models.diagnosis import Alarm, Reading

BLIND_LOSS = {"minimax": 1.386, "non_saturating": 1.386, "least_squares": 0.25, "hinge": 2.0, "relativistic": 0.693}
"""D's loss while it cannot tell real from generated; a Wasserstein critic has no such value."""
WON = 0.05
"""Alarm when D's loss is below this fraction of it."""
MEAN_DISTANCE, NEAREST_DISTANCE = 0.4, 0.2
"""Alarm when these distances among samples are below this fraction of those among real images."""
OVERFIT, DEVIATIONS = 0.6, 3.0
"""Alarm when D's mean logit of unseen images lies this far on the way from training images to samples, and this many
standard errors away from training images."""
COPY, COPIES = 0.5, 0.2
"""A sample is a copy if its nearest training image is at less than this fraction of the distance of the second nearest;
alarm when the fraction of copies exceeds that of unseen images by more than the second value."""
EXPLODED = 100.0  # times the median gradient norm before
WORSE = 1.5  # times the lowest FD before
RECOGNISED, EVEN = 0.4, 0.85
"""Alarm when the share of samples whose class is clear, or the entropy of their classes, is below this fraction of that
of real images."""
LIKE_GAUSSIAN, CLEAR = 0.5, 0.5
"""The first only where class FD is above this fraction of that of a Gaussian fitted to the pixels, and where at least
this share of the real images is clear."""
TRAINING_ROWS, SIDE = 4096, 16


def from_scalars(loss: str, now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    """The alarms that need only the metrics."""
    yield from nonfinite(now)
    yield from exploding(now, before)
    yield from too_strong(loss, now, before)
    yield from worsening(now, before)


def nonfinite(now: Reading) -> Iterator[Alarm]:
    share = now.metrics.get("gradient_nonfinite", 0.0)  # of the updates
    if share > 0:
        yield Alarm(
            "non-finite-gradients",
            f"In {share:.1%} of the updates a gradient was infinite or not a number; these updates were skipped.",
            "Lower learning_rate or the weight of the penalties.",
            {"share": share},
        )


def exploding(now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    for network in ("generator", "discriminator"):
        name = f"gradient_{network}"
        past = [reading.metrics[name] for reading in before if name in reading.metrics]
        if len(past) >= 3 and now.metrics.get(name, 0.0) > EXPLODED * (usual := sorted(past)[len(past) // 2]) > 0:
            yield Alarm(
                f"exploding-{network}",
                f"The norm of the {network}'s gradient is {now.metrics[name]:.3g}; the median before was {usual:.3g}.",
                "Lower learning_rate, or raise r1.",
                {"length": now.metrics[name], "usual": usual},
            )


def too_strong(loss: str, now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    """D's loss is nearly 0 at this inspection and at the one before, so that G gets almost no gradient."""
    if loss not in BLIND_LOSS or not before:
        return
    blind = BLIND_LOSS[loss]
    losses = [reading.metrics.get("loss_discriminator", blind) for reading in (before[-1], now)]
    if max(losses) < WON * blind:
        yield Alarm(
            "discriminator-too-strong",
            f"The discriminator's loss is {losses[1]:.3g}, against {blind:.3g} when it cannot tell real from generated "
            "images. The generator gets almost no gradient.",
            "Lower discriminator_learning_rate, raise r1, or add instance_noise or label_smoothing.",
            {"loss_discriminator": losses[1], "ignorant": blind, "d_fake": now.metrics.get("d_fake", 0.0)},
        )


def worsening(now: Reading, before: Sequence[Reading]) -> Iterator[Alarm]:
    """FD exceeds 1.5 times its lowest value before, plus the floor."""
    past = [(reading.metrics["fd"], reading.images) for reading in before if "fd" in reading.metrics]
    if past and now.metrics.get("fd", 0.0) > WORSE * min(past)[0] + now.metrics.get("fd_floor", 0.0):
        best, images = min(past)
        yield Alarm(
            "getting-worse",
            f"FD was {best:.3g} after {images} images and is {now.metrics['fd']:.3g} now.",
            f"Train for about {images} images, or fork from there with a lower learning_rate.",
            {"fd": now.metrics["fd"], "best_fd": best, "best_images": images},
        )


def from_measures(measured: Mapping[str, float]) -> Iterator[Alarm]:
    """The alarms that compare samples with real images in the features of the dataset's network (Fidelity)."""
    real, trivial = (measured.get(name, 0.0) for name in ("confident_floor", "class_fd_gaussian"))
    far = measured.get("class_fd", 0.0) > LIKE_GAUSSIAN * trivial  # else the network is merely unsure
    if far and real >= CLEAR and measured.get("confident", real) < RECOGNISED * real:
        yield Alarm(
            "unrecognisable",
            f"{measured['confident']:.0%} of the samples clearly show one of the classes, against {real:.0%} of real "
            "images.",
            "Train longer, or change learning_rate.",
            {"confident": measured["confident"], "confident_real": real, "class_fd": measured["class_fd"]},
        )
    real = measured.get("class_entropy_floor", 0.0)
    if measured.get("class_entropy", real) < EVEN * real:
        yield Alarm(
            "classes-missing",
            f"The entropy of the classes of the samples is {measured['class_entropy']:.2f}, against {real:.2f} of real "
            "images: the generator makes some classes rarely or never.",
            "Lower learning_rate, raise r1, or fork from a point before this one.",
            {"class_entropy": measured["class_entropy"], "class_entropy_real": real},
        )
    trivial = measured.get("fd_gaussian", 0.0)
    if measured.get("fd", 0.0) > trivial > 0:
        yield Alarm(
            "worse-than-gaussian",
            f"FD is {measured['fd']:.3g}, above the {trivial:.3g} of a Gaussian fitted to the pixels: the generator "
            "has learned less than the mean and covariance of the images.",
            "Train longer, or lower learning_rate.",
            {"fd": measured["fd"], "fd_gaussian": trivial},
        )


def mean_and_nearest_distance(images: Tensor) -> tuple[float, float]:
    """The mean distance between two images, and the median distance from an image to its nearest other."""
    rows = images.flatten(1)
    table = torch.cdist(rows, rows)
    count = len(rows)
    nearest = table.clone().fill_diagonal_(float("inf")).amin(1).median()
    return float(table.sum() / (count * (count - 1))), float(nearest)


def collapsed(samples: Tensor, reals: Tensor) -> Iterator[Alarm]:
    """Samples differ much less from each other than real images do, all of them or within a few groups."""
    if len(reals) < 4:
        return
    (mean, near), (real_mean, real_near) = map(mean_and_nearest_distance, (samples[: len(reals)], reals))
    if real_near > 0 and (mean < MEAN_DISTANCE * real_mean or near < NEAREST_DISTANCE * real_near):
        yield Alarm(
            "mode-collapse",
            f"The mean distance between samples is {mean / real_mean:.0%} of that between real images, and that "
            f"to the nearest other sample {near / real_near:.0%}: the generator makes few different images.",
            "Raise r1, turn minibatch_stddev on, lower learning_rate, or fork from a point before this one.",
            {"distance": mean, "real_distance": real_mean, "nearest": near, "real_nearest": real_near},
        )


def overfitted(trained: Tensor, unseen: Tensor, samples: Tensor) -> Iterator[Alarm]:
    """From D's logits of training images, unseen images and samples: r_v, the difference of the means of the first two
    over that of the first and the last (ADA, Karras et al. 2020, eq. 1)."""
    way = float(trained.mean() - samples.mean())
    gap = float(trained.mean() - unseen.mean())
    error = float((trained.var() / len(trained) + unseen.var() / len(unseen)).sqrt()) if len(unseen) > 1 else 0.0
    if way > 0 and error > 0 and gap / way > OVERFIT and gap > DEVIATIONS * error:
        yield Alarm(
            "discriminator-overfits",
            f"The discriminator rates unseen images {gap / way:.0%} of the way from training images to samples: it has "
            "memorised the training images.",
            "Set augment to adaptive, raise r1, use a smaller width, or use more data.",
            {"trained": float(trained.mean()), "unseen": float(unseen.mean()), "made": float(samples.mean())},
        )


def small_rows(images: Tensor) -> Tensor:
    """(n, pixels): images scaled down to at most 16 pixels a side, at which copies are compared."""
    height, width = (min(SIDE, side) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images, (height, width)).flatten(1)


def training_rows(train: Columns, device: torch.device) -> Tensor:
    """At most 4096 training images, evenly spaced, as `small_rows`."""
    count = len(train.columns["images"])
    every = torch.arange(count) if count <= TRAINING_ROWS else torch.linspace(0, count - 1, TRAINING_ROWS).long()
    return torch.cat([small_rows(train.rows(part, ["images"])["images"].to(device)) for part in every.split(256)])


def fraction_copied(images: Tensor, train_rows: Tensor) -> float:
    """Fraction of images much nearer to one training row than to any other (a copy, not a likeness)."""
    distances = torch.cdist(small_rows(images), train_rows).topk(2, largest=False)[0]
    return float((distances[:, 0] < COPY * distances[:, 1]).double().mean())


def memorised(samples: Tensor, reals: Tensor, train_rows: Tensor) -> Iterator[Alarm]:
    """More of the samples are copies of training images than of the unseen images `reals`."""
    if len(train_rows) < 3:
        return
    fraction, usual = fraction_copied(samples, train_rows), fraction_copied(reals, train_rows)
    if fraction > usual + COPIES:
        yield Alarm(
            "memorising",
            f"{fraction:.0%} of the samples are copies of training images, against {usual:.0%} of unseen images.",
            "Set augment to adaptive or diff, train shorter, use a smaller width, or use more data.",
            {"copies": fraction, "copies_unseen": usual},
        )
