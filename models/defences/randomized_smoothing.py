"""Randomised smoothing (Cohen et al. 2019): a model that answers by the vote of its answers to noisy copies, and how
far an image may move in l2 before the vote can turn: a radius that holds with probability 1 - alpha.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from scipy.special import betainc, betaincinv, ndtri
from torch import Tensor

from models import deadline
from models.attacks.core.rng import RowRNG
from models.family import Family

SIGMA = 0.25
"""Of models that have no noise of their own."""
ABSTAINED = -1
BLOCK, NUMBERS = 64, 4_000_000
"""Noisy copies asked at once, and the most pixel values in them."""
Function = Callable[[Tensor], Tensor]


class RandomlySmoothed(ABC):
    """Has noise in front: its answers are votes."""

    @property
    @abstractmethod
    def sigma(self) -> float | None:
        """Standard deviation of the noise; None without any."""

    @abstractmethod
    def voter(self, images: Tensor) -> Tensor:
        """Logits (b, K) of one noisy copy each: all of the model behind the noise."""


def voter_of(model: Family, sigma: float | None) -> tuple[float, Function]:
    """The noise to certify under and who votes: a model's own, or `sigma` before any classifier."""
    if isinstance(model, RandomlySmoothed) and model.sigma is not None:
        return sigma or model.sigma, model.voter
    return sigma or SIGMA, model.logits


def count_votes(voter: Function, image: Tensor, sigma: float, seed: Tensor, n: int, classes: int, what: str) -> Tensor:
    """(classes,) votes of `n` noisy copies of one image (c, h, w), a block at a time: memory does not grow with n.

    `seed` () int64 and `what` name the noise. Blocks have one size, so that the votes of an image are always the same.
    """
    votes = torch.zeros(classes, dtype=torch.int64, device=image.device)
    block = max(1, min(BLOCK, NUMBERS // image.numel()))
    rng = RowRNG(seed[None])
    for start in range(0, n, block):
        deadline.check()
        noise = rng.normal((block, *image.shape), what, start)[0]
        answers = voter(image + sigma * noise).argmax(1)[: n - start]
        votes += torch.bincount(answers, minlength=classes)
    return votes


def lower_bound(hits: np.ndarray, total: int, alpha: float) -> np.ndarray:
    """Clopper-Pearson: the share that is undercut with probability alpha at most, given `hits` of `total`."""
    hits = np.asarray(hits, dtype=np.float64)
    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), total - hits + 1, alpha), 0.0)


def interval(hits: float, total: int, level: float = 0.95) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a share."""
    tail = (1 - level) / 2
    high = 1 - float(lower_bound(np.array(total - hits), total, tail))
    return float(lower_bound(np.array(hits), total, tail)), high


def certify(first: Tensor, votes: Tensor, sigma: float, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Class (b,) or ABSTAINED, radius (b,) in l2 and lower bound (b,) of the class's share (Cohen et al., CERTIFY).

    `first` (b, K) are the votes that choose the class, `votes` those, all others, that measure its share.
    """
    guess = first.argmax(1)
    hits = votes.gather(1, guess[:, None])[:, 0].cpu().numpy()
    total = int(votes[0].sum()) if len(votes) else 1
    bound = lower_bound(hits, total, alpha)
    radius = sigma * ndtri(np.clip(bound, 0.5, 1 - 1e-12))
    sure = torch.from_numpy(bound > 0.5)
    guess = torch.where(sure.to(guess.device), guess, ABSTAINED)
    return guess, torch.from_numpy(np.maximum(radius, 0)), torch.from_numpy(bound)


def vote(votes: Tensor, alpha: float) -> Tensor:
    """(b,): the leading class, or ABSTAINED when two equal classes could have come out so (Cohen et al., PREDICT)."""
    top = votes.topk(2, 1)
    first, second = (top.values[:, index].cpu().numpy().astype(np.float64) for index in (0, 1))
    chance = np.where(first > 0, 2 * betainc(np.maximum(first, 1), second + 1, 0.5), 1)  # of so many heads, or tails
    sure = torch.from_numpy(chance <= alpha).to(votes.device)
    return torch.where(sure, top.indices[:, 0], ABSTAINED)
