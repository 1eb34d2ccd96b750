"""Geometry of a threat model, one class per norm: size, steepest step, projection, random point.

A perturbation `delta` is (N, C, H, W); every size, radius and length is (N,).
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

TINY = torch.finfo(torch.float32).tiny


def expand_to(values: Tensor, like: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to multiply images row by row."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


class Norm(ABC):
    """One way to measure a perturbation."""

    name: ClassVar[str]

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """The length of each perturbation."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """The direction of length 1 that climbs fastest; zero where the gradient is zero."""

    @abstractmethod
    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        """The perturbation inside the ball."""

    @abstractmethod
    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        """A random point of the ball, from standard normal and uniform draws of the image's shape."""


class Linf(Norm):
    name = "linf"

    def size(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).amax(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        radius = expand_to(radius, delta)
        return torch.clamp(delta, -radius, radius)

    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        return (2 * uniform - 1) * expand_to(radius, uniform)


class L2(Norm):
    name = "l2"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).norm(dim=1)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Scaling by the largest entry first keeps the squares of tiny gradients from vanishing.
        gradient = gradient / expand_to(gradient.abs().flatten(1).amax(1).clamp_min(TINY), gradient)
        return gradient / expand_to(self.size(gradient).clamp_min(TINY), gradient)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        return delta * expand_to((radius / self.size(delta).clamp_min(TINY)).clamp_max(1), delta)

    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        length = uniform.flatten(1)[:, 0] ** (1 / normal[0].numel()) if len(normal) else radius
        return self.steepest(normal) * expand_to(radius * length, normal)


class L1(Norm):
    name = "l1"

    def size(self, delta: Tensor) -> Tensor:
        return delta.abs().flatten(1).sum(1)

    def steepest(self, gradient: Tensor) -> Tensor:
        """All of the step on the largest entry."""
        flat = gradient.flatten(1)
        top = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).view_as(gradient)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        return self.project_within(delta, radius, torch.full_like(delta, torch.inf))

    def project_within(self, delta: Tensor, radius: Tensor, room: Tensor) -> Tensor:
        """Euclidean projection onto the ball and 0 <= |delta| <= room at once: one threshold shrinks all entries.

        The length left at threshold t is the sum of (|d| - t)+ - (|d| - room - t)+, piecewise linear in t with a bend
        at each |d| and |d| - room, so sorting the bends gives t.
        """
        size, room = delta.abs().flatten(1), room.flatten(1)
        bends = torch.cat([size, (size - room).clamp_min(-1e30)], 1)
        weight = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
        weight = torch.where(bends > 0, weight, 0)
        order = bends.argsort(dim=1, descending=True, stable=True)
        bends, weight = bends.gather(1, order), weight.gather(1, order)
        count, total = weight.cumsum(1), (weight * bends.clamp_min(0)).cumsum(1)
        length = total - count * bends
        last = (length <= radius[:, None]).sum(1, keepdim=True).clamp_min(1) - 1
        threshold = (total.gather(1, last) - radius[:, None]) / count.gather(1, last).clamp_min(1)
        kept = torch.minimum((size - threshold.clamp_min(0)).clamp_min(0), room)
        kept = kept * (radius[:, None] / kept.sum(1, keepdim=True).clamp_min(TINY)).clamp_max(1)
        return delta.sign() * kept.view_as(delta)

    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        laplace = normal.sign() * -torch.log(uniform.clamp_min(TINY))
        return laplace * expand_to(radius / self.size(laplace).clamp_min(TINY), laplace)


class L0(Norm):
    """Counts pixels: a pixel is changed when any of its channels is."""

    name = "l0"

    def size(self, delta: Tensor) -> Tensor:
        return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)

    def steepest(self, gradient: Tensor) -> Tensor:
        return L1().steepest(gradient)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        """Keep the pixels that move most."""
        strength = delta.abs().sum(1).flatten(1)
        order = strength.argsort(dim=1, descending=True, stable=True).argsort(1)
        kept = (order + 1 <= radius[:, None]).view(len(delta), 1, *delta.shape[2:])
        return delta * kept

    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        return self.project(2 * uniform - 1, radius)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1(), L0())}
