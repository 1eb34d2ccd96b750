"""What an attacker can see of a model: gradients (white box), scores or labels.

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
from models.attacks.core.freeze import frozen_copy, with_folded_batch_norm
from models.capabilities import predicted_classes
from models.types import ConfigError, InputError

Function = Callable[[Tensor], Tensor]


def check_budget(budget: int | None) -> int | None:
    """The budget itself. Raises ConfigError when it is below 1."""
    if budget is not None and budget < 1:
        raise ConfigError(
            f"budget must be at least 1; you sent {budget}", field="budget", remedy="raise it or leave it out"
        )
    return budget


def in_float32(function: Function, x: Tensor) -> Tensor:
    """function(x) in float32, with autocast switched off."""
    if not torch.is_autocast_enabled(x.device.type):
        return function(x).float()
    with torch.autocast(x.device.type, enabled=False):
        return function(x).float()


class Access(ABC):
    """Images (N, C, H, W) in [0, 1] in, float32 outputs (N, ...) out. `budget` caps the queries of one image."""

    level: ClassVar[int]
    """0 labels, 1 scores, 2 gradients."""
    title: ClassVar[str]

    def __init__(self, function: Function, budget: int | None = None):
        self.function, self.budget = function, check_budget(budget)

    def with_budget(self, budget: int | None) -> Self:
        """The same access with another budget."""
        other = copy(self)
        other.budget = check_budget(budget)
        return other

    def outputs(self, x: Tensor) -> Tensor:
        """One forward pass without gradients, in float32."""
        with torch.no_grad():
            return self._forward(x)

    def exact(self, x: Tensor) -> Tensor:
        """The outputs of the model as it is served, for the final test."""
        return self.outputs(x)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Context of a run: the model in eval mode, afterwards in its previous state."""
        yield

    def _forward(self, x: Tensor) -> Tensor:
        deadline.check()
        return in_float32(self.function, x)


class WhiteBox(Access):
    """Full access to a differentiable model: a frozen copy in eval mode with batch norm folded into other layers.

    `function` (module, images) -> outputs; default: call the module. Batch norm is folded only if the `shape`
    (C, H, W) of an image is given. A model that is frozen already and has nothing to fold is used without a copy.
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
        served = frozen_copy(module)
        attacked = with_fast_first_conv(with_folded_batch_norm(served, call, shape))
        super().__init__(lambda x: call(attacked, x), budget)
        self.served = self.function if attacked is served else lambda x: call(served, x)

    def exact(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return in_float32(self.served, x)

    def outputs_with_graph(self, x: Tensor, through: Function | None = None) -> tuple[Tensor, Tensor]:
        """A leaf with the values of `x`, and the outputs for the leaf, or for `through(leaf)`, with their graph."""
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            return leaf, self._forward(leaf if through is None else through(leaf))

    def differentiable(self, x: Tensor) -> bool:
        """Whether outputs have a gradient with respect to `x`: false for a network that another program runs."""
        return self.outputs_with_graph(x)[1].grad_fn is not None

    @staticmethod
    def gradient(leaf: Tensor, value: Tensor, keep: bool = False) -> Tensor:
        """d(sum of value) / d(leaf). Leaves the `.grad` of every parameter untouched."""
        if value.grad_fn is None:
            raise InputError(
                "the model gives no gradient with respect to its input",
                field="method",
                remedy="use an attack that needs scores or labels only, such as square or hopskipjump",
            )
        (gradient,) = torch.autograd.grad(value, leaf, torch.ones_like(value), retain_graph=keep, allow_unused=True)
        return torch.zeros_like(leaf) if gradient is None else gradient


class Live(WhiteBox):
    """The module itself during its training: in eval mode for the run, then with its previous flags."""

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
    """A function that returns one score per class."""

    level, title = 1, "scores"


class LabelOracle(Access):
    """A function that returns a label only, converted to one-hot scores.

    Of scores (N, K) only the argmax is used; a function that returns labels (N,) needs `classes`, their number.
    """

    level, title = 0, "labels"

    def __init__(self, function: Function, budget: int | None = None, classes: int | None = None):
        super().__init__(function, budget)
        self.classes = classes

    def _forward(self, x: Tensor) -> Tensor:
        deadline.check()
        answers = self.function(x)
        if answers.ndim == 2:
            labels, count = predicted_classes(answers), answers.shape[1]
        else:
            labels, count = answers, self.classes
        scores = torch.nn.functional.one_hot(labels.long().clamp_min(0), count).float()
        return scores.where((labels >= 0)[:, None], torch.nan)  # no label


LEVELS = {"labels": 0, "scores": 1, "gradients": 2}
