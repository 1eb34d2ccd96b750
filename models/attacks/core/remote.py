"""A model far away: it is shown 8-bit images, every answer is remembered, and one day it may answer no more."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.attacks.core.access import Access
from models.attacks.core.run import BudgetExhausted

Ask = Callable[[Tensor], Tensor]
"""uint8 (n, C, H, W) -> scores float32 (n, K) or labels int64 (n,); raises `OracleUnavailable`."""


class OracleUnavailable(Exception):
    """The model does not answer any more; the sentence says why."""


class RemoteOracle(Access):
    """Scores, or labels as one-hot scores. What was asked once is never asked again.

    When the answers stop, or `total` images have been asked about, a run ends as one whose budget is spent: its result
    is what had been seen by then, and `ended` says why.
    """

    title = "scores or labels"

    def __init__(self, ask: Ask, classes: int | None, gives: str = "scores", total: int | None = None):
        super().__init__(self._answers)
        self.ask, self.classes, self.total = ask, classes, total
        self.level = {"labels": 0, "scores": 1}[gives]
        self.title = gives
        self.memory: dict[bytes, Tensor] = {}
        self.asked = 0
        self.ended: str | None = None

    def with_budget(self, budget: int | None) -> "RemoteOracle":
        """The same memory under another budget per image."""
        self.budget = budget
        return self

    def exact(self, x: Tensor) -> Tensor:
        """As `outputs`; not a number where nobody answers."""
        try:
            return self.outputs(x)
        except BudgetExhausted:
            blank = torch.full((self.classes or 2,), torch.nan)
            return torch.stack([self.memory.get(key, blank) for key in keys(levels(x))])

    def known(self, x: Tensor) -> Tensor:
        """(N,): the images whose answer is remembered."""
        return torch.tensor([key in self.memory for key in keys(levels(x))], dtype=torch.bool)

    def _answers(self, x: Tensor) -> Tensor:
        shown = levels(x)
        names = keys(shown)
        new = {name: row for row, name in enumerate(names) if name not in self.memory}
        if new:
            self._inquire(shown[list(new.values())], list(new))
        return torch.stack([self.memory[name] for name in names])

    def _inquire(self, images: Tensor, names: list[bytes]) -> None:
        left = len(names) if self.total is None else self.total - self.asked
        if self.ended is None and left < len(names):
            self.ended = f"the budget of {self.total} queries is spent"
        if self.ended is not None:
            raise BudgetExhausted
        self.asked += len(names)
        try:
            found = self.ask(images)
        except OracleUnavailable as reason:
            self.ended = str(reason)
            raise BudgetExhausted from None
        if found.ndim == 1:
            found = torch.nn.functional.one_hot(found, self.classes).float()
        self.classes = self.classes or found.shape[1]
        self.memory |= dict(zip(names, found.float(), strict=True))


def levels(x: Tensor) -> Tensor:
    """uint8 (N, C, H, W): the images as a file holds them."""
    return (x.detach() * 255).round().clamp(0, 255).to(torch.uint8)


def keys(images: Tensor) -> list[bytes]:
    """What tells images apart."""
    return [row.numpy().tobytes() for row in images.cpu()]
