"""One update of a GAN: the input of D, the optimisers, a step that skips gradients which are not finite, metrics."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.losses.adversarial import generator_loss, value
from models.training.ranks import average_gradients
from models.types import Metrics

EQUILIBRIUM = -2 * math.log(2)  # V(G, D) while D cannot tell real from generated

Penalties = dict[str, tuple[float, Tensor]]
"""Weight and value of each further term of an objective, by the name under which the value is reported."""


@dataclass(frozen=True)
class DInput:
    """Input of D: images (b, c, h, w) in [-1, 1], and the condition (b, k) of each in a conditional GAN."""

    images: Tensor
    condition: Tensor | None = None


def new_optimiser(kind: str, network: nn.Module, lr: float, betas: tuple[float, float]) -> Optimizer:
    """Over all parameters of `network`; `betas` decay the first and the second moment."""
    if kind == "adam":
        return torch.optim.Adam(network.parameters(), lr, betas, eps=1e-8, fused=True)
    if kind == "sgd":
        return torch.optim.SGD(network.parameters(), lr, momentum=betas[0])
    return torch.optim.RMSprop(network.parameters(), lr, alpha=betas[1])


def total_norm(tensors: Iterable[Tensor | None]) -> Tensor:
    """The Euclidean norm of all tensors taken together."""
    return torch.stack(torch._foreach_norm([tensor for tensor in tensors if tensor is not None])).norm()


def optimizer_step(optimiser: Optimizer, loss: Tensor) -> tuple[Tensor, Tensor]:
    """One update, with zero gradients if any is not finite. Returns the gradient's norm, and 1 if it is not finite.

    The masks stay on the device, so that nothing waits for it.
    """
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients([optimiser])
    gradients = [
        weight.grad for group in optimiser.param_groups for weight in group["params"] if weight.grad is not None
    ]
    norm = total_norm(gradients)
    nonfinite = ~torch.isfinite(norm)
    for gradient in gradients:
        gradient.masked_fill_(nonfinite, 0.0)
    optimiser.step()
    return norm.masked_fill(nonfinite, 0.0), nonfinite.float()


def game_metrics(a: Tensor, b: Tensor) -> Metrics:
    """V(G, D) and its excess over 2 log(1/2), where D cannot tell; D(x) and D(G(z)), both 1/2 there; and the mean sign
    of D's logits of real images, near 1 where D has memorised them."""
    means = {"d_real": a.sigmoid().mean(), "d_fake": b.sigmoid().mean(), "d_real_sign": a.sign().mean()}
    game_value = value(a, b)
    return {"value": game_value, "value_excess": game_value - EQUILIBRIUM, **means}


def saturation(generator: nn.Module, b: Tensor) -> Metrics:
    """Norm of G's gradient under the saturating loss of Goodfellow et al. 2014, and under its replacement."""
    metrics, parameters = {}, [p for p in generator.parameters() if p.requires_grad]
    for label, name in (("saturating", "minimax"), ("non_saturating", "non_saturating")):
        gradients = torch.autograd.grad(generator_loss(name, b), parameters, retain_graph=True, allow_unused=True)
        metrics[f"gradient_{label}"] = total_norm(gradients)
    return metrics
