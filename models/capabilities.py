"""What a trained model can do, each capability a base class: a family names its own in its class line."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from models.nn.plane import Plane
from models.types import DataSpec


class Encodes(ABC):
    """Maps images to codes; the same image gives the same code."""

    latent_dim: int

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, latent_dim)."""


class Decodes(ABC):
    """Maps codes to images."""

    latent_dim: int

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, C, H, W) in [0, 1]."""

    def project_to_code_space(self, latents: Tensor) -> Tensor:
        """The nearest latents that can be a code: after a ReLU none is negative."""
        return latents


class HasPrior(ABC):
    """Draws codes to decode: `/samples` works."""

    spherical: bool = False
    """Codes lie on a sphere: scaling the draw changes nothing."""

    @abstractmethod
    def draw(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """Codes (B, latent_dim) from standard normal `noise` (B, latent_dim) and `uniform` (B,) in [0, 1).

        Row i depends on row i alone, so a sample does not change with the number drawn beside it.
        """

    def plane(self) -> Plane | None:
        """The plane through latent space on which codes spread most, where the family knows it."""
        return None


class HasPosterior(ABC):
    """Encodes to a distribution, of which `encode` gives the mean, and bounds the likelihood of an image."""

    @abstractmethod
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) in [0, 1] -> mean and log-variance (B, latent_dim) of independent Gaussians."""

    @abstractmethod
    def negative_elbo(self, images: Tensor, noise: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,) in nats, an upper bound on -log p(image), averaged over draws of the code.

        `noise` (S, latent_dim) is standard normal and the same for every image, so a row depends on itself alone.
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
        """(B, C, H, W) in [0, 1] -> (B, K), before any softmax."""


class Segments(ABC):
    """Gives one logit per class for each pixel."""

    @abstractmethod
    def pixel_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K, H, W), before any softmax."""


class DetectsObjects(ABC):
    """Finds objects: for each cell of a grid, how sure it is of an object of each class there, and its box."""

    @abstractmethod
    def detection_maps(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K + 4, h, w): K logits, then left, top, right and bottom in pixels."""


class Regresses(ABC):
    """Gives one number per image."""

    @abstractmethod
    def estimate(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,), in the unit of the dataset's targets."""


class Conditional(ABC):
    """`draw` and `decode` take labels (B,) as a further argument: class indices, unless the family says otherwise."""

    data: DataSpec
    takes_labels: bool = True
    """False: this model is not conditional. A family with a setting for it has False, its models their own value."""

    def label(self, given: str | int) -> int | float:
        """The label that a name, an index or a number stands for. Raises InputError when there is none."""
        return self.data.class_index(given)

    def example_labels(self, count: int) -> Tensor:
        """(count,) labels that show what there is."""
        return torch.arange(count) % len(self.data.classes)

    infers_labels: bool = False
    """`infer_labels` works, so operations on images need no label."""

    def infer_labels(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> labels (B,): the label for which each image is best decoded."""
        raise NotImplementedError

    def describe_labels(self, labels: Tensor) -> list[dict]:
        """What to say of each label (B,)."""
        return [{"label": self.data.classes[index], "index": index} for index in labels.tolist()]


class Translates(ABC):
    """Maps images of one domain to another. A direction is `ab` (input to target, A to B) or `ba`."""

    directions: tuple[str, ...]

    @abstractmethod
    def translate(self, images: Tensor, direction: str) -> Tensor:
        """(B, C, H, W) in [0, 1], of any height and width -> the same shape and range."""

    def statistics(self, image: Tensor, directions: list[str]) -> list[Tensor]:
        """What tiles of `image` (C, H, W) must know of all of it, translated in `directions` one after the other.

        Numbers (s,) for each direction, for `translate_tiles`; none where a pixel depends on its surroundings alone.
        """
        return [image.new_zeros(0) for _ in directions]

    def translate_tiles(self, tiles: Tensor, direction: str, statistics: Tensor) -> Tensor:
        """`translate` for tiles (B, C, h, w) of images whose `statistics` (B, s) are these."""
        return self.translate(tiles, direction)


class Refines(ABC):
    """Makes simulated images look real while keeping what they show."""

    noise_dim: int = 0
    """Numbers that decide which of its refined forms an image takes; 0: it has one."""

    @abstractmethod
    def refine(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [0, 1], standard normal (B, noise_dim) -> the shape and range of the images.

        Without noise the most usual form: that of zeros.
        """


class Ages(ABC):
    """Shows the same person at another age: `decode` takes the age group as its label."""

    @property
    @abstractmethod
    def age_groups(self) -> tuple[str, ...]:
        """The names of the groups, by label."""

    @abstractmethod
    def age_group(self, given: str) -> int:
        """The label of a group's name, or of an age in it. Raises InputError when there is none."""

    @abstractmethod
    def age_logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K): logits of the age groups."""

    @abstractmethod
    def identity_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, F): features whose cosine says how alike two persons are."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, latent_dim): a first guess at the latents, whatever the age."""


class Discriminates:
    """Tells images of the data from images that the model itself makes, as a whole or patch by patch."""

    patch_domains: tuple[str, ...] = ()
    """Domains (`a`, `b`) whose images `patches` scores; empty: only whole images are scored."""
    scores_pairs: bool = False
    """`patches` takes two images for each score: the input, then what was made of it."""

    def real_log_odds(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,): log-odds that an image is from the data and not from the model.

        With patches: their mean, for images of the first domain.
        """
        return self.patches(images, domain=self.patch_domains[0]).flatten(1).mean(1)

    def patches(self, *images: Tensor, domain: str) -> Tensor:
        """(B, C, H, W), for pairs twice -> (B, rows, columns): log-odds that a patch is from the data."""
        raise NotImplementedError


class DetectsAdversarial(ABC):
    """Says how much an image looks like an adversarial one."""

    @property
    @abstractmethod
    def threshold(self) -> float | None:
        """Suspicion above this is more than a clean image should have; None when nothing is known of clean ones."""

    @abstractmethod
    def adversarial_score(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B,)."""


class StyleBased(ABC):
    """Latents with a learned typical value, some of which steer coarse and some fine features (style-based generators).

    Straight lines between latents stay inside their distribution.
    """

    @abstractmethod
    def truncate(self, latents: Tensor, truncation: Tensor) -> Tensor:
        """(B, latent_dim), with `truncation` (B, 1): 0 gives the typical latents, 1 those given."""

    @property
    @abstractmethod
    def crossings(self) -> int:
        """Number of layers at which `mix` can change from one code to the other: 1 .. crossings, coarse to fine."""

    @abstractmethod
    def mix(self, coarse: Tensor, fine: Tensor, crossing: Tensor) -> Tensor:
        """Latents (B, latent_dim) twice and the crossing of each row (B,) -> (B, C, H, W) in [0, 1]."""


def takes_labels(model: object) -> bool:
    """Whether a model (or, of a class, every model of it) is conditional."""
    return getattr(model, "takes_labels", False)
