"""Models that encode to a distribution, of which `encode` gives the mean."""

from abc import ABC, abstractmethod

from torch import Tensor


class HasPosterior(ABC):
    """Codes can be drawn as well: `encode?sample=true`."""

    @abstractmethod
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, h, w) in [0, 1] -> mean and log-variance (b, latent_dim) of independent Gaussians."""
