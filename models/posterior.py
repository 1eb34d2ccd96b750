"""Models that encode to a distribution, of which `encode` gives the mean."""

from abc import ABC, abstractmethod

from torch import Tensor


class HasPosterior(ABC):
    """Codes can be drawn as well: `encode?sample=true`."""

    @abstractmethod
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) in [0, 1] -> mean and log-variance (b, latent_dim) of independent Gaussians."""


class HasBound(HasPosterior):
    """A model of p(image) with a bound on how surprising an image is."""

    @abstractmethod
    def negative_elbo(self, images: Tensor, noise: Tensor) -> Tensor:
        """(b, c, h, w) in [0, 1] -> (b,) in nats, an upper bound on -log p(image), averaged over draws of the code.

        `noise` (s, latent_dim) is standard normal, and the same for every image: a row depends on itself alone.
        """
