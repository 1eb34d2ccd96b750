"""Gradient penalties. Each differentiates twice, so it runs in float32 and outside torch.compile."""

from collections.abc import Callable

import torch
from torch import Tensor


def zero_centred(logits: Tensor, images: Tensor) -> Tensor:
    """E |grad_x D(x)|^2, summed over pixels: R1 on real images, R2 on fakes (Mescheder et al. 2018, eq. 9 and 10).

    `images` (b, c, h, w) must require grad and `logits` (b,) come from them.
    """
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3)).mean()


def one_centred(critic: Callable[[Tensor], Tensor], reals: Tensor, fakes: Tensor, draws: torch.Generator) -> Tensor:
    """E (|grad D| - 1)^2 between paired reals and fakes (b, c, h, w) (Gulrajani et al. 2017, eq. 3)."""
    share = torch.rand(len(reals), 1, 1, 1, generator=draws, device=reals.device)
    between = torch.lerp(fakes, reals, share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    length = (slope.square().sum((1, 2, 3)) + 1e-12).sqrt()  # the root has no slope at 0
    return (length - 1).square().mean()


def path_lengths(images: Tensor, styles: Tensor, draws: torch.Generator) -> Tensor:
    """|J^T y| for images y drawn from a Gaussian, per row (Karras et al. 2020, eq. 4); `styles` are (b, ...)."""
    pixels = images.shape[2] * images.shape[3]
    directions = torch.randn(images.shape, generator=draws, device=images.device) / pixels**0.5
    (slope,) = torch.autograd.grad((images * directions).sum(), styles, create_graph=True)
    squares = slope.square().flatten(1)  # (b, layers * w) or (b, w)
    return (squares.sum(1) + 1e-12).sqrt()
