"""Capabilities of trained models, as base classes of the families. Operations, attacks and reports ask for them.

In the shapes B is the batch, C, H, W the image, K the number of classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from models.nn.plane import Plane
from models.types import DataSpec, InputError

UNDECIDED = -1
"""The predicted class of an image for which the model's output is not finite."""
_NONFINITE: ContextVar[list[int] | None] = ContextVar("nonfinite", default=None)


def finite_rows(outputs: Tensor) -> Tensor:
    """Outputs (N, ...) -> (N,) bool: whether all numbers of a row are finite. Counted inside `counting_nonfinite`."""
    finite = torch.isfinite(outputs)
    finite = finite.flatten(1).all(1) if finite.ndim > 1 else finite
    counts = _NONFINITE.get()
    if counts is not None and not bool(finite.all()):
        counts[0] += int((~finite).sum())
    return finite


def predicted_classes(logits: Tensor) -> Tensor:
    """Logits (N, K, ...) -> the class with the largest, UNDECIDED for a row with a logit that is not finite."""
    finite = finite_rows(logits)
    classes = logits.argmax(1)
    return classes if bool(finite.all()) else classes.where(finite.view(-1, *[1] * (classes.ndim - 1)), UNDECIDED)


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, K), labels (N,) -> (N,) bool: another class is predicted. False where the output is not finite."""
    classes = predicted_classes(logits)
    return (classes != labels) & (classes != UNDECIDED)


@contextmanager
def counting_nonfinite(start: int = 0) -> Iterator[list[int]]:
    """Inside, the first number of the list counts the rows that `finite_rows` found not to be finite."""
    counts = [start]
    token = _NONFINITE.set(counts)
    try:
        yield counts
    finally:
        _NONFINITE.reset(token)


class Encodes(ABC):
    """Maps images to latents; the same image gives the same latents."""

    latent_dim: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, latent_dim)."""


class Decodes(ABC):
    """Maps latents to images."""

    latent_dim: int

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, C, H, W) in [0, 1]. Any finite latents are allowed."""

    def project_to_code_space(self, latents: Tensor) -> Tensor:
        """The nearest latents that `encode` could give; not negative for a ReLU code, for example."""
        return latents


class HasPrior(ABC):
    """Has a distribution of latents from which samples are drawn."""

    spherical: bool = False
    """Latents lie on a sphere: scaling the noise does not change the sample."""
    samplers: tuple[str, ...] = ("prior",)
    """Names of the distributions that `draw_from` knows."""

    @abstractmethod
    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """Latents (B, latent_dim) from standard normal `noise` (B, latent_dim) and `uniform` (B,) in [0, 1).

        Row i depends on row i of both only, so a sample does not depend on the batch.
        """

    def draw_from(self, sampler: str, noise: Tensor, uniform: Tensor, *labels: Tensor) -> Tensor:
        """`draw`, from one of `samplers` instead of the model's default."""
        return self.draw(noise, uniform, *labels)

    def plane(self, sampler: str | None = None) -> Plane | None:
        """The plane of greatest variance in latent space, if the family knows it; that of one of `samplers`."""
        return None


class HasPosterior(ABC):
    """Encodes an image to a Gaussian, whose mean `encode` gives, and bounds the likelihood of the image."""

    @abstractmethod
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) in [0, 1] -> mean and log-variance (B, latent_dim) of independent Gaussians."""

    @abstractmethod
    def negative_elbo(self, images: Tensor, noise: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,): -ELBO in nats, an upper bound on -log p(image), the mean over S latents.

        `noise` (S, latent_dim) is standard normal and used for every image, so a row does not depend on the batch.
        """


class Denoises(ABC):
    """Removes noise from images."""

    @abstractmethod
    def denoise(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same shape and range."""


class Classifies(ABC):
    """Gives one logit per class."""

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K): logits, before softmax."""


class Segments(ABC):
    """Gives one logit per class for each pixel."""

    @abstractmethod
    def pixel_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K, H, W): logits, before softmax."""


class DetectsObjects(ABC):
    """Detects objects: a logit per class and a box for each cell of a grid."""

    @abstractmethod
    def detection_maps(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K + 4, h, w): K logits, then the box: left, top, right, bottom in pixels."""


class Regresses(ABC):
    """Gives one number per image."""

    @abstractmethod
    def estimate(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,), in the unit of the dataset's targets."""


class Conditional(ABC):
    """`draw` and `decode` take labels (B,) as a further argument: class indices, unless the family says otherwise."""

    data: DataSpec
    takes_labels: bool = True
    """False: this model is not conditional. Where a setting decides, the class has False and models their own value."""

    def label(self, given: str | int) -> int | float:
        """The label for a name, an index or a number. Raises InputError if it is unknown."""
        return self.data.class_index(given)

    def example_labels(self, count: int) -> Tensor:
        """(count,): labels for samples that show all classes."""
        return torch.arange(count) % len(self.data.classes)

    infers_labels: bool = False
    """`infer_labels` works, so operations on images need no label."""

    def infer_labels(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,): the labels with which to decode the codes of these images."""
        raise NotImplementedError

    def describe_labels(self, labels: Tensor) -> list[dict]:
        """The description of each label (B,) in answers."""
        return [{"label": self.data.classes[index], "index": index} for index in labels.tolist()]


class Translates(ABC):
    """Maps images of one domain to another. A direction is `ab` (input to target, A to B) or `ba`."""

    directions: tuple[str, ...]

    @abstractmethod
    def translate(self, images: Tensor, direction: str) -> Tensor:
        """(B, C, H, W) in [0, 1], of any height and width -> the same shape and range."""

    def statistics(self, image: Tensor, directions: list[str]) -> list[Tensor]:
        """Statistics of a whole image (C, H, W) that its tiles need, translated in `directions` one after the other.

        (s,) for each direction, for `translate_tiles`; empty if a pixel depends on its neighbourhood only.
        """
        return [image.new_zeros(0) for _ in directions]

    def translate_tiles(self, tiles: Tensor, direction: str, statistics: Tensor) -> Tensor:
        """`translate` for tiles (B, C, h, w) of images with these `statistics` (B, s)."""
        return self.translate(tiles, direction)


class Refines(ABC):
    """Makes simulated images look real without changing their content."""

    noise_dim: int = 0
    """Size of the noise that varies the refined image; 0: there is one refined image."""

    @abstractmethod
    def refine(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1], standard normal noise (B, noise_dim), default zeros -> the same shape and range."""


class Ages(ABC):
    """Shows the same person at another age. The labels of `decode` are age groups."""

    @property
    @abstractmethod
    def age_groups(self) -> tuple[str, ...]:
        """The names of the groups, by label."""

    @abstractmethod
    def age_group(self, given: str) -> int:
        """The label for the name of a group or an age in it. Raises InputError if there is none."""

    @abstractmethod
    def age_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K): logits of the age groups."""

    @abstractmethod
    def identity_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, F): features whose cosine is the similarity of two persons."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, latent_dim): an initial estimate of the latents, for any age."""


class Discriminates:
    """Scores images as real or generated, as a whole or by patches."""

    patch_domains: tuple[str, ...] = ()
    """Domains (`a`, `b`) whose images `patches` scores; empty: only whole images have scores."""
    scores_pairs: bool = False
    """`patches` takes two images for each score: the input and its translation."""

    def real_log_odds(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,): log-odds that an image is real, not generated by the model.

        Default: the mean over patches, for images of the first domain.
        """
        return self.patches(images, domain=self.patch_domains[0]).flatten(1).mean(1)

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        """(B, C, H, W), twice for pairs -> (B, rows, columns): log-odds that a patch is real."""
        raise NotImplementedError


class DetectsAdversarial(ABC):
    """Scores images as adversarial or clean."""

    @property
    @abstractmethod
    def threshold(self) -> float | None:
        """Scores above this are flagged as adversarial; None before clean images have been measured."""

    @abstractmethod
    def adversarial_score(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,): higher is more suspicious."""


class StyleBased(ABC):
    """A style-based generator: latents (w) have a learned mean, and control coarse to fine features layer by layer.

    Linear interpolation between latents stays in their distribution.
    """

    @abstractmethod
    def truncate(self, latents: Tensor, truncation: Tensor) -> Tensor:
        """(B, latent_dim), truncation psi (B, 1) -> mean + psi (latents - mean), (B, latent_dim)."""

    @property
    @abstractmethod
    def crossings(self) -> int:
        """Number of layers at which `mix` can switch latents: 1 (coarse) to `crossings` (fine)."""

    @abstractmethod
    def mix(self, coarse: Tensor, fine: Tensor, crossing: Tensor) -> Tensor:
        """Style mixing: latents (B, latent_dim) twice, the crossing of each row (B,) -> (B, C, H, W) in [0, 1]."""


def takes_labels(model: object) -> bool:
    """Whether a model is conditional; for a class, whether all of its models are."""
    return getattr(model, "takes_labels", False)


def reconstruct(model: object, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes of images (B, C, H, W) and their reconstructions.

    A conditional model decodes for `labels` (B,), by default those it infers. Raises InputError if it infers none.
    """
    codes = model.encode(images)
    if not takes_labels(model):
        return codes, model.decode(codes)
    if labels is None and not model.infers_labels:
        raise InputError("Required: label, because this model is conditional.", field="label")
    return codes, model.decode(codes, model.infer_labels(images) if labels is None else labels)
