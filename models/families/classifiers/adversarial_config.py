"""Settings of adversarial training, and the inner attack that maximises the loss in every update."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from models.attacks.core.base import Eps
from models.attacks.core.norms import expand_to
from models.attacks.core.threat import ThreatModel
from models.data import Columns
from models.evaluation.metrics import spaced_rows
from models.families.classifiers.base import ClassifierBaseConfig
from models.types import ConfigError

STEPS = {"goodfellow": 1, "fgsm_rs": 1, "pgd": 7, "trades": 7, "free": 4}
WEIGHTS = {"goodfellow": 0.5, "trades": 6.0}
SINGLE_STEP = ("goodfellow", "fgsm_rs")
MAX_IMAGES = 512  # looked at to choose eps
LINE_ART = 0.8  # fraction of the pixels that are near black or white
Loss = Callable[[Tensor], Tensor]
"""(B, C, H, W) -> (B,): a loss of each image, to be maximised."""


class AdversarialConfig(ClassifierBaseConfig):
    """With `adversarial`, the training loss is that of images attacked anew in every update."""

    adversarial: Literal["none", "goodfellow", "fgsm_rs", "pgd", "trades", "free"] = Field(
        "none",
        description="Adversarial training. goodfellow: mixes clean and FGSM images (Goodfellow 2015). fgsm_rs: FGSM "
        "from a random start, guarded against catastrophic overfitting (Wong 2020). pgd: several steps (Madry 2018). "
        "trades: clean loss plus divergence of the predictions (Zhang 2019). free: repeats each batch and keeps the "
        "perturbation (Shafahi 2019).",
    )
    adversarial_eps: Eps | None = Field(
        None,
        description="Size of the attack, pixels in [0, 1]. Default: chosen from the images (grey line art: linf 0.3, "
        "l2 2.0; others: linf 8/255, l2 0.5).",
    )
    adversarial_norm: Literal["linf", "l2"] = Field("linf", description="Norm in which adversarial_eps is measured.")
    adversarial_steps: int | None = Field(
        None,
        ge=1,
        le=200,
        description="Gradient steps of pgd and trades (default: 7), or repeats of a batch of free (default: 4).",
    )
    adversarial_step: Eps | None = Field(
        None, description="Step size. Default: 2.5 * eps / steps; for fgsm_rs 1.25 * eps, for goodfellow eps."
    )
    adversarial_weight: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="goodfellow: weight of the clean loss in [0, 1] (default: 0.5). trades: weight of the divergence "
        "(default: 6).",
    )


def with_defaults(config: AdversarialConfig) -> AdversarialConfig:
    """The config with the defaults of its method. Raises ConfigError for settings that exclude each other."""
    method = config.adversarial
    if method == "none":
        unused = [name for name in ("eps", "steps", "step", "weight") if getattr(config, f"adversarial_{name}")]
        if unused:
            field = f"adversarial_{unused[0]}"
            raise ConfigError(
                f"{field} is set, but adversarial is none.", field, "Set adversarial, for example to pgd."
            )
        return config
    if method in SINGLE_STEP and (config.adversarial_steps or 1) > 1:
        steps = config.adversarial_steps
        detail = f"adversarial={method} takes 1 step; you sent adversarial_steps={steps}."
        raise ConfigError(detail, "adversarial_steps", "Remove adversarial_steps, or set adversarial to pgd.")
    if config.adversarial_eps is not None and config.adversarial_eps <= 0:
        detail = f"adversarial_eps must be greater than 0; you sent {config.adversarial_eps:g}."
        raise ConfigError(detail, "adversarial_eps", "Remove it to have it chosen, or set adversarial to none.")
    if config.adversarial_norm == "linf" and (config.adversarial_eps or 0) > 1:
        detail = f"adversarial_eps must be at most 1: pixels lie in [0, 1]; you sent {config.adversarial_eps:g}."
        raise ConfigError(detail, "adversarial_eps", "Try 8/255.")
    weight = WEIGHTS.get(method) if config.adversarial_weight is None else config.adversarial_weight
    if method == "goodfellow" and weight > 1:
        detail = f"adversarial_weight must be at most 1 with goodfellow; you sent {weight:g}."
        raise ConfigError(detail, "adversarial_weight", "Try 0.5.")
    steps = config.adversarial_steps or STEPS[method]
    return config.model_copy(update={"adversarial_steps": steps, "adversarial_weight": weight})


def is_line_art(images: Tensor) -> bool:
    """Whether images (N, C, H, W) are grey and at least four in five of their pixels near black or white."""
    edges = ((images < 1 / 8) | (images > 7 / 8)).float().mean()
    return images.shape[1] == 1 and float(edges) >= LINE_ART


def default_eps(train: Columns, norm: str) -> float:
    """0.3 for grey line art such as MNIST, else 8/255; for l2 2.0 and 0.5, usual for 28x28 and 32x32x3 images."""
    line_art = is_line_art(torch.cat(list(spaced_rows(train, limit=MAX_IMAGES))))
    return {"linf": 0.3 if line_art else 8 / 255, "l2": 2.0 if line_art else 0.5}[norm]


class InnerAttack(NamedTuple):
    """Projected gradient ascent on the loss. `start`: random in the ball, near (1e-3 * normal), or the image itself."""

    threat: ThreatModel
    steps: int
    step: float
    start: Literal["random", "near", "image"]

    @classmethod
    def of(cls, config: AdversarialConfig, share: float = 1.0) -> "InnerAttack":
        """The configured attack at `share` (in (0, 1]) of its eps and step size."""
        eps, steps, method = config.adversarial_eps * share, config.adversarial_steps, config.adversarial
        plain = {"fgsm_rs": 1.25 * eps, "goodfellow": eps}.get(method, 2.5 * eps / steps)
        step = plain if config.adversarial_step is None else config.adversarial_step * share
        start = {"goodfellow": "image", "trades": "near"}.get(method, "random")
        return cls(ThreatModel(config.adversarial_norm, eps), steps, step, start)

    def with_steps(self, steps: int) -> "InnerAttack":
        """The same ball with `steps` steps of the default size, from a random start."""
        return InnerAttack(self.threat, steps, 2.5 * self.threat.eps / steps, "random")

    def __call__(self, x: Tensor, loss: Loss, draws: torch.Generator) -> Tensor:
        """Images of the ball around `x` (B, C, H, W) with a higher loss."""
        attacked = self._start(x, draws)
        length = x.new_full((len(x),), self.step)
        for _ in range(self.steps):
            leaf = attacked.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
            attacked = self.threat.project(x, attacked + expand_to(length, x) * self.threat.geometry.steepest(gradient))
        return attacked

    def _start(self, x: Tensor, draws: torch.Generator) -> Tensor:
        if self.start == "image":
            return x
        normal = torch.randn(x.shape, generator=draws, device=x.device)
        if self.start == "near":
            return self.threat.project(x, x + 1e-3 * normal)
        uniform = torch.rand(x.shape, generator=draws, device=x.device)
        return self.threat.project(x, x + self.threat.geometry.random_point(normal, uniform, self.threat.radius(x)))


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """(B, K) twice -> (B,): KL(softmax(reference) || softmax(logits)), the second term of TRADES."""
    return F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction="none", log_target=True).sum(1)
