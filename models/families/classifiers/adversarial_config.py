"""Adversarial training: its settings, and images made harder for the network as it is at this very update."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.attacks.core.base import Eps
from models.attacks.core.norms import wide
from models.attacks.core.threat import ThreatModel
from models.data import Columns
from models.evaluation.metrics import spread
from models.families.classifiers.base import JudgingConfig
from models.types import ConfigError

STEPS = {"goodfellow": 1, "fgsm_rs": 1, "pgd": 7, "trades": 7, "free": 4}
WEIGHTS = {"goodfellow": 0.5, "trades": 6.0}
SINGLE = ("goodfellow", "fgsm_rs")
SEEN = 512
TWO_TONE = 0.8
Loss = Callable[[Tensor], Tensor]
"""(b, c, h, w) -> (b,): a loss of each image, to be climbed."""


class HardeningConfig(JudgingConfig):
    """The training loss is that of images attacked anew in every update."""

    adversarial: Literal["none", "goodfellow", "fgsm_rs", "pgd", "trades", "free"] = Field(
        "none",
        description="Training on attacked images. goodfellow: clean and FGSM images mixed. fgsm_rs: FGSM from a random "
        "start, with a guard (Wong 2020). pgd: several steps (Madry 2018). trades: clean loss and the distance of "
        "answers (Zhang 2019). free: each batch again and again, the perturbation kept (Shafahi 2019).",
    )
    adversarial_eps: Eps | None = Field(
        None, description="Size of the attack. Empty: from the data, 0.3 for line art in grey, 8/255 for others."
    )
    adversarial_norm: Literal["linf", "l2"] = Field("linf", description="How that size is measured.")
    adversarial_steps: int | None = Field(
        None, ge=1, le=200, description="Gradient steps of pgd and trades (empty: 7), repeats of a batch of free (4)."
    )
    adversarial_step: Eps | None = Field(
        None, description="Length of a step. Empty: 2.5 * eps / steps; of fgsm_rs 1.25 * eps, of others of one eps."
    )
    adversarial_weight: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="goodfellow: share of the clean loss (empty: 0.5). trades: weight of the distance (empty: 6).",
    )


def with_defaults(config: HardeningConfig) -> HardeningConfig:
    """The config with what the method decides filled in. Raises ConfigError for settings that do not go together."""
    method = config.adversarial
    if method == "none":
        given = [name for name in ("eps", "steps", "step", "weight") if getattr(config, f"adversarial_{name}")]
        if given:
            field = f"adversarial_{given[0]}"
            raise ConfigError(f"{field} says how to attack, but adversarial is none", field, "set adversarial to pgd")
        return config
    if method in SINGLE and (config.adversarial_steps or 1) > 1:
        raise ConfigError(f"{method} makes one step", "adversarial_steps", "set adversarial to pgd, or leave it empty")
    if config.adversarial_eps is not None and config.adversarial_eps <= 0:
        raise ConfigError("an attack of size 0 is none", "adversarial_eps", "leave it empty, or set adversarial=none")
    if config.adversarial_norm == "linf" and (config.adversarial_eps or 0) > 1:
        raise ConfigError("pixels lie in [0, 1], so eps is at most 1", "adversarial_eps", "try 8/255")
    weight = WEIGHTS.get(method) if config.adversarial_weight is None else config.adversarial_weight
    if method == "goodfellow" and weight > 1:
        raise ConfigError("the share of the clean loss is at most 1", "adversarial_weight", "try 0.5")
    steps = config.adversarial_steps or STEPS[method]
    return config.model_copy(update={"adversarial_steps": steps, "adversarial_weight": weight})


def is_line_art(images: Tensor) -> bool:
    """Whether images (n, c, h, w) are grey and nearly all black and white."""
    edges = ((images < 1 / 8) | (images > 7 / 8)).float().mean()
    return images.shape[1] == 1 and float(edges) >= TWO_TONE


def usual_eps(train: Columns, norm: str) -> float:
    """0.3 where four in five pixels are near black or white and there is no colour, as in MNIST; else 8/255.

    For l2 the length at which images of 28x28 (2.0) and of 32x32x3 (0.5) are usually attacked.
    """
    line_art = is_line_art(torch.cat(list(spread(train, limit=SEEN))))
    return {"linf": 0.3 if line_art else 8 / 255, "l2": 2.0 if line_art else 0.5}[norm]


class Ascent(NamedTuple):
    """How images are attacked in training: `start` is random, a hair away, or the image itself."""

    threat: ThreatModel
    steps: int
    step: float
    start: Literal["random", "near", "image"]

    @classmethod
    def of(cls, config: HardeningConfig, share: float = 1.0) -> "Ascent":
        """The configured one at `share` of its eps."""
        eps, steps, method = config.adversarial_eps * share, config.adversarial_steps, config.adversarial
        plain = {"fgsm_rs": 1.25 * eps, "goodfellow": eps}.get(method, 2.5 * eps / steps)
        step = plain if config.adversarial_step is None else config.adversarial_step * share
        start = {"goodfellow": "image", "trades": "near"}.get(method, "random")
        return cls(ThreatModel(config.adversarial_norm, eps), steps, step, start)

    def but(self, steps: int) -> "Ascent":
        """The same ball climbed in so many usual steps, from a random start."""
        return Ascent(self.threat, steps, 2.5 * self.threat.eps / steps, "random")

    def __call__(self, x: Tensor, loss: Loss, draws: torch.Generator) -> Tensor:
        """Images of the ball around `x` (b, c, h, w) with a higher loss."""
        found = self._first(x, draws)
        length = x.new_full((len(x),), self.step)
        for _ in range(self.steps):
            leaf = found.detach().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(loss(leaf).sum(), leaf)
            found = self.threat.project(x, found + wide(length, x) * self.threat.geometry.steepest(slope))
        return found

    def _first(self, x: Tensor, draws: torch.Generator) -> Tensor:
        if self.start == "image":
            return x
        normal = torch.randn(x.shape, generator=draws, device=x.device)
        if self.start == "near":
            return self.threat.project(x, x + 1e-3 * normal)
        uniform = torch.rand(x.shape, generator=draws, device=x.device)
        return self.threat.project(x, x + self.threat.geometry.scatter(normal, uniform, self.threat.radius(x)))


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """(b,): KL(softmax(reference) || softmax(logits)), the distance of answers in TRADES."""
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)
