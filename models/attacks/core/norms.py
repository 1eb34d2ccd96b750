"""Geometry of a threat model, one class per norm: size, steepest direction, projection, random point.

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
    """A norm of perturbations."""

    name: ClassVar[str]

    @abstractmethod
    def size(self, delta: Tensor) -> Tensor:
        """(N,): the norm of each perturbation."""

    @abstractmethod
    def steepest(self, gradient: Tensor) -> Tensor:
        """argmax of <gradient, d> over ||d|| <= 1; zero where the gradient is zero."""

    @abstractmethod
    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        """The perturbation projected into the ball."""

    @abstractmethod
    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        """A random point of the ball, from standard normal and uniform numbers (N, C, H, W)."""


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
        # Dividing by the largest entry first avoids underflow of the squares of tiny gradients.
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
        """The whole step on the largest entry."""
        flat = gradient.flatten(1)
        top = flat.abs().argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign()).view_as(gradient)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        return self.project_within(delta, radius, torch.full_like(delta, torch.inf))

    def project_within(self, delta: Tensor, radius: Tensor, room: Tensor) -> Tensor:
        """Euclidean projection onto {||d||_1 <= radius, |d| <= room}: |d_i| = min(max(|delta_i| - t, 0), room_i).

        The norm at threshold t is sum((|delta| - t)+ - (|delta| - room - t)+), piecewise linear in t with kinks at
        |delta| and |delta| - room. Sorting the kinks gives t (Croce & Hein 2021, prop. 2.1).
        """
        size, room = delta.abs().flatten(1), room.flatten(1)
        kinks = torch.cat([size, (size - room).clamp_min(-1e30)], 1)
        weight = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
        weight = torch.where(kinks > 0, weight, 0)
        order = kinks.argsort(dim=1, descending=True, stable=True)
        kinks, weight = kinks.gather(1, order), weight.gather(1, order)
        count, total = weight.cumsum(1), (weight * kinks.clamp_min(0)).cumsum(1)
        length = total - count * kinks
        last = (length <= radius[:, None]).sum(1, keepdim=True).clamp_min(1) - 1
        threshold = (total.gather(1, last) - radius[:, None]) / count.gather(1, last).clamp_min(1)
        shrunk = torch.minimum((size - threshold.clamp_min(0)).clamp_min(0), room)
        shrunk = shrunk * (radius[:, None] / shrunk.sum(1, keepdim=True).clamp_min(TINY)).clamp_max(1)
        return delta.sign() * shrunk.view_as(delta)

    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        laplace = normal.sign() * -torch.log(uniform.clamp_min(TINY))
        return laplace * expand_to(radius / self.size(laplace).clamp_min(TINY), laplace)


class L0(Norm):
    """Counts pixels. A pixel is changed when any of its channels is."""

    name = "l0"

    def size(self, delta: Tensor) -> Tensor:
        return (delta != 0).any(1).flatten(1).sum(1).to(delta.dtype)

    def steepest(self, gradient: Tensor) -> Tensor:
        return L1().steepest(gradient)

    def project(self, delta: Tensor, radius: Tensor) -> Tensor:
        """Keeps the pixels with the largest change."""
        strength = delta.abs().sum(1).flatten(1)
        order = strength.argsort(dim=1, descending=True, stable=True).argsort(1)
        mask = (order + 1 <= radius[:, None]).view(len(delta), 1, *delta.shape[2:])
        return delta * mask

    def random_point(self, normal: Tensor, uniform: Tensor, radius: Tensor) -> Tensor:
        return self.project(2 * uniform - 1, radius)


NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1(), L0())}
