"""What an attacker can see of a model: its gradients, its scores, or only its labels.

An access holds the model and the query budget per image; the queries of one run are counted in run.py.
"""

from abc import ABC
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from models import deadline
from models.attacks.core.fast_first_conv import with_fast_first_conv
from models.attacks.core.freeze import folded, frozen
from models.types import ConfigError, InputError

Function = Callable[[Tensor], Tensor]


def checked(budget: int | None) -> int | None:
    """The budget. Raises ConfigError when nothing could be asked with it."""
    if budget is not None and budget < 1:
        raise ConfigError("a query budget must be at least 1", field="budget", remedy="raise it or leave it out")
    return budget


def in_full(function: Function, x: Tensor) -> Tensor:
    """What a function answers, in float32 whatever the caller's autocast says."""
    if not torch.is_autocast_enabled(x.device.type):
        return function(x).float()
    with torch.autocast(x.device.type, enabled=False):
        return function(x).float()


class Access(ABC):
    """Images (N, C, H, W) in [0, 1] in, float32 outputs (N, ...) out. `budget` caps the queries of one image."""

    level: ClassVar[int]
    """How much is seen: 0 labels, 1 scores, 2 gradients."""
    title: ClassVar[str]

    def __init__(self, function: Function, budget: int | None = None):
        self.function, self.budget = function, checked(budget)

    def with_budget(self, budget: int | None) -> Self:
        """The same access with another budget."""
        other = copy(self)
        other.budget = checked(budget)
        return other

    def outputs(self, x: Tensor) -> Tensor:
        """One forward pass, float32 whatever the caller's autocast says."""
        with torch.no_grad():
            return self._forward(x)

    def exact(self, x: Tensor) -> Tensor:
        """The outputs of the model as it is served, for the final test."""
        return self.outputs(x)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Around a run: the model in a state fit for being attacked, and afterwards as it was."""
        yield

    def _forward(self, x: Tensor) -> Tensor:
        deadline.check()
        return in_full(self.function, x)


class WhiteBox(Access):
    """Full access to a differentiable model, of which it keeps a frozen copy in eval mode with batch norm folded.

    `function` says how to ask the module, which it receives first; the default calls it. With the `shape` (C, H, W) of
    an image batch norm can be folded. A model that is frozen already and has nothing to fold is used as it is.
    """

    level, title = 2, "gradients"

    def __init__(
        self,
        module: nn.Module,
        function: Callable[[nn.Module, Tensor], Tensor] | None = None,
        budget: int | None = None,
        shape: tuple[int, int, int] | None = None,
    ):
        call = function or (lambda net, x: net(x))
        served = frozen(module)
        attacked = with_fast_first_conv(folded(served, call, shape))
        super().__init__(lambda x: call(attacked, x), budget)
        self.served = self.function if attacked is served else lambda x: call(served, x)

    def exact(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return in_full(self.served, x)

    def outputs_with_graph(self, x: Tensor, through: Function | None = None) -> tuple[Tensor, Tensor]:
        """A leaf made of `x`, and the outputs with their graph, for the image itself or for `through` of it."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            return leaf, self._forward(leaf if through is None else through(leaf))

    def differentiable(self, x: Tensor) -> bool:
        """Whether a gradient of what is said of `x` comes back to it: not from a network that another program runs."""
        return self.outputs_with_graph(x)[1].grad_fn is not None

    @staticmethod
    def gradient(leaf: Tensor, value: Tensor, keep: bool = False) -> Tensor:
        """d(sum of value) / d(leaf), and nothing else: no parameter's `.grad` is touched."""
        if value.grad_fn is None:
            raise InputError(
                "the model gives no gradient with respect to its input",
                field="method",
                remedy="use an attack that needs scores or labels only, such as square or hopskipjump",
            )
        (found,) = torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=keep, allow_unused=True)
        return torch.zeros_like(leaf) if found is None else found


class Live(WhiteBox):
    """The module itself, in the middle of its training: eval mode lasts for the run, then every flag is as before."""

    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Tensor], Tensor] | None = None):
        call = function or (lambda net, x: net(x))
        Access.__init__(self, lambda x: call(module, x))
        self.module, self.served = module, self.function

    @contextmanager
    def ready(self) -> Iterator[None]:
        flags = [(part, part.training) for part in self.module.modules()]
        for part, _ in flags:
            part.training = False
        try:
            yield
        finally:
            for part, flag in flags:
                part.training = flag


class ScoreOracle(Access):
    """A function that answers with one score per class."""

    level, title = 1, "scores"


class LabelOracle(Access):
    """A function that answers with a label alone, presented as a score of 1 for it and 0 for all others.

    A function that gives scores (N, K) is narrowed to its label; one that gives labels (N,) needs `classes`, a count.
    """

    level, title = 0, "labels"

    def __init__(self, function: Function, budget: int | None = None, classes: int | None = None):
        super().__init__(function, budget)
        self.classes = classes

    def _forward(self, x: Tensor) -> Tensor:
        deadline.check()
        found = self.function(x)
        labels, count = (found.argmax(1), found.shape[1]) if found.ndim == 2 else (found, self.classes)
        return torch.nn.functional.one_hot(labels.long(), count).float()


LEVELS = {"labels": 0, "scores": 1, "gradients": 2}
