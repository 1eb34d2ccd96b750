"""Randomised smoothing (Cohen et al. 2019): the majority vote of a model over noisy copies of an image, and an l2
radius within which the vote does not change, with probability 1 - alpha.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import betainc, ndtri
from torch import Tensor

from models import deadline
from models.attacks.core.rng import RowRNG
from models.capabilities import UNDECIDED, predicted_classes
from models.evaluation.confidence import lower_bound
from models.family import Family

SIGMA = 0.25
"""Default noise of models without noise of their own."""
ABSTAINED = -1
BLOCK, NUMBERS = 64, 4_000_000
"""Maximum noisy copies of a forward pass, and maximum pixel values in them."""
Function = Callable[[Tensor], Tensor]


class RandomlySmoothed(ABC):
    """Adds noise to its input and answers by majority vote."""

    @property
    @abstractmethod
    def sigma(self) -> float | None:
        """Standard deviation of the noise; None without any."""

    @abstractmethod
    def voter(self, images: Tensor) -> Tensor:
        """Logits (b, K) of images with noise already added: the model behind the noise."""


def voter_of(model: Family, sigma: float | None) -> tuple[float, Function]:
    """Sigma and the voting function: the model's own, or `sigma` in front of any classifier."""
    if isinstance(model, RandomlySmoothed) and model.sigma is not None:
        return sigma or model.sigma, model.voter
    return sigma or SIGMA, model.logits


def count_votes(voter: Function, image: Tensor, sigma: float, seed: Tensor, n: int, classes: int, what: str) -> Tensor:
    """(classes,): votes of `n` noisy copies of one image (c, h, w), in blocks, so that memory does not grow with n.

    A copy for which the output is not finite abstains, so the votes may be fewer than n.

    `seed` () int64 and the purpose `what` determine the noise. All blocks have the same size, so that the votes of an
    image are reproducible.
    """
    votes = torch.zeros(classes, dtype=torch.int64, device=image.device)
    block = max(1, min(BLOCK, NUMBERS // image.numel()))
    rng = RowRNG(seed[None])
    for start in range(0, n, block):
        deadline.check()
        noise = rng.normal((block, *image.shape), what, start)[0]
        answers = predicted_classes(voter(image + sigma * noise)[: n - start])
        votes += torch.bincount(answers[answers != UNDECIDED], minlength=classes)
    return votes


def certify(first: Tensor, votes: Tensor, n: int, sigma: float, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Class (b,) or ABSTAINED, l2 radius (b,) and lower bound (b,) of the class probability p (Cohen et al., CERTIFY).

    radius = sigma * Phi^-1(lower bound of p). `first` (b, K) are the votes that choose the class, `votes` (b, K) the
    independent votes of `n` copies that bound p; a copy that abstained counts against the class.
    """
    guess = first.argmax(1)
    hits = votes.gather(1, guess[:, None])[:, 0].cpu().numpy()
    bound = lower_bound(hits, n, alpha)
    radius = sigma * ndtri(np.clip(bound, 0.5, 1 - 1e-12))
    sure = torch.from_numpy(bound > 0.5)
    guess = torch.where(sure.to(guess.device), guess, ABSTAINED)
    return guess, torch.from_numpy(np.maximum(radius, 0)), torch.from_numpy(bound)


def vote(votes: Tensor, alpha: float) -> Tensor:
    """(b,): the class with most votes, or ABSTAINED unless a binomial test rejects a tie (Cohen et al., PREDICT)."""
    top = votes.topk(2, 1)
    first, second = (top.values[:, index].cpu().numpy().astype(np.float64) for index in (0, 1))
    # two-sided binomial test of p = 1/2
    p_value = np.where(first > 0, 2 * betainc(np.maximum(first, 1), second + 1, 0.5), 1)
    sure = torch.from_numpy(p_value <= alpha).to(votes.device)
    return torch.where(sure, top.indices[:, 0], ABSTAINED)
