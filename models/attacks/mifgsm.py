"""Momentum iterative FGSM (Dong et al. 2018) with input diversity (Xie et al. 2019) and translation invariance (Dong et
al. 2019), the standard attacks for examples that transfer to other models."""

from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor, nn

from models.attacks.core import base as core
from models.attacks.core.norms import TINY, expand_to
from models.attacks.core.run import AttackRun
from models.capabilities import Classifies, DetectsObjects, Segments


def resize_and_pad(run: AttackRun, step: int, smallest: float, chance: float) -> Callable[[Tensor], Tensor]:
    """Resizes each image to a random smaller size at a random place on black, with probability `chance`."""
    shrink, right, down, u = run.rng.uniform((4,), "diversity", step).unbind(1)
    size = torch.where(u < chance, smallest + (1 - smallest) * shrink, 1.0)
    free = 1 / size - 1  # range of the window's position, in units of the sampling grid
    rows = torch.stack([1 / size, torch.zeros_like(size), free * (2 * right - 1)], 1)
    columns = torch.stack([torch.zeros_like(size), 1 / size, free * (2 * down - 1)], 1)
    grid = nn.functional.affine_grid(torch.stack([rows, columns], 1), list(run.x.shape), align_corners=False)
    return lambda x: nn.functional.grid_sample(x, grid, align_corners=False)


def smooth(gradient: Tensor, width: int) -> Tensor:
    """The gradient averaged over shifts: a Gaussian blur of odd `width` with standard deviation width / 6."""
    places = torch.arange(width, device=gradient.device) - width // 2
    bell = torch.exp(-0.5 * (places / (width / 6)) ** 2)
    bell, channels = bell / bell.sum(), gradient.shape[1]
    for kernel in (bell.view(1, 1, -1, 1), bell.view(1, 1, 1, -1)):
        kernel = kernel.expand(channels, -1, -1, -1)
        gradient = nn.functional.conv2d(gradient, kernel, padding="same", groups=channels)
    return gradient


class MIFGSM(core.Attack):
    name = "mifgsm"
    summary = "Sign steps along a momentum of gradients; transfers to other models (Dong et al. 2018)"
    norms = ("linf",)
    victims = (Classifies, Segments, DetectsObjects)

    class Config(core.Config):
        steps: int = Field(10, ge=1, le=1000, description="Gradient steps.")
        step: core.Eps | None = Field(None, gt=0, description="Length of a step. Default: eps / steps.")
        momentum: float = Field(1.0, ge=0, le=10, description="Weight of past gradients.")
        diversity: float = Field(
            0.0, ge=0, le=1, description="Probability of a resized and padded image in a step (DI)."
        )
        smallest: float = Field(0.9, gt=0.1, le=1, description="Smallest relative size of resized images.")
        kernel: int = Field(
            0, ge=0, le=31, description="Width in pixels of the Gaussian blur of gradients (TI); 0: no blur."
        )
        stop_early: bool = Field(
            True, description="Stop on an image once it is adversarial. Set to false for transfer."
        )

    def steps(self, run: AttackRun) -> Iterator[None]:
        state, config = run.state, self.config
        state.x = run.x if run.start is run.x else run.threat.project(run.x, run.start)
        state.momentum = torch.zeros_like(run.x)
        for number in range(config.steps):
            through = resize_and_pad(run, number, config.smallest, config.diversity) if config.diversity else None
            _, gradient = run.value_and_grad(state.x, through=through)
            gradient = smooth(gradient, config.kernel | 1) if config.kernel else gradient
            # g_t+1 = mu * g_t + gradient / ||gradient||_1  (eq. 6)
            scale = expand_to(gradient.abs().flatten(1).sum(1).clamp_min(TINY), gradient)
            state.momentum = config.momentum * state.momentum + gradient / scale
            length = run.radius / config.steps if config.step is None else torch.full_like(run.radius, config.step)
            # x_t+1 = project(x_t + alpha * sign(g_t+1))  (eq. 7)
            state.x = run.threat.project(run.x, state.x + state.momentum.sign() * expand_to(length, state.x))
            yield
        if config.stop_early:
            run.evaluate(state.x)
        else:
            run.set_result(state.x)
