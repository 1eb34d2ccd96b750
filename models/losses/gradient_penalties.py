"""Gradient penalties. Each is differentiated a second time, so it runs in float32 and outside torch.compile."""

from collections.abc import Callable

import torch
from torch import Tensor


def zero_centred_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """E |grad_x D(x)|^2 (R1 on real images, R2 on generated ones; Mescheder et al. 2018, eq. 9 and 10).

    `images` (b, c, h, w) must require gradients, and `logits` (b,) be computed from them.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def one_centred_penalty(
    critic: Callable[[Tensor], Tensor], reals: Tensor, fakes: Tensor, draws: torch.Generator
) -> Tensor:
    """E (|grad_x D(x)| - 1)^2 at x = e real + (1 - e) fake, e uniform (WGAN-GP, Gulrajani et al. 2017, eq. 3)."""
    weight = torch.rand(len(reals), 1, 1, 1, generator=draws, device=reals.device)
    between = torch.lerp(fakes, reals, weight).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norm = (gradient.square().sum((1, 2, 3)) + 1e-12).sqrt()  # sqrt is not differentiable at 0
    return (norm - 1).square().mean()


def path_lengths(images: Tensor, styles: Tensor, draws: torch.Generator) -> Tensor:
    """(b,): |J^T y| with y ~ N(0, 1) / sqrt(pixels) and J the Jacobian of images (b, c, h, w) in styles (b, ...).

    StyleGAN2, Karras et al. 2020, eq. 4.
    """
    pixels = images.shape[2] * images.shape[3]
    directions = torch.randn(images.shape, generator=draws, device=images.device) / pixels**0.5
    (gradient,) = torch.autograd.grad((images * directions).sum(), styles, create_graph=True)
    squares = gradient.square().flatten(1)  # (b, layers * w) or (b, w)
    return (squares.sum(1) + 1e-12).sqrt()
