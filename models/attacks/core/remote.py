"""A model behind a remote interface: it receives 8-bit images, answers are cached, and it may become unavailable."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.attacks.core.access import Access
from models.attacks.core.run import BudgetExhausted

Ask = Callable[[Tensor], Tensor]
"""uint8 (n, C, H, W) -> scores float32 (n, K) or labels int64 (n,); raises `OracleUnavailable`."""


class OracleUnavailable(Exception):
    """The model does not answer any more; the message gives the reason."""


class RemoteOracle(Access):
    """Scores, or labels as one-hot scores. No image is sent twice.

    When the model becomes unavailable, or `total` images have been sent, a run ends as with an exhausted budget: its
    result is the best so far, and `ended` gives the reason.
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
        """Itself, with the same cache and another budget per image."""
        self.budget = budget
        return self

    def exact(self, x: Tensor) -> Tensor:
        """As `outputs`; NaN for images without an answer."""
        try:
            return self.outputs(x)
        except BudgetExhausted:
            blank = torch.full((self.classes or 2,), torch.nan)
            return torch.stack([self.memory.get(key, blank) for key in keys(levels(x))])

    def known(self, x: Tensor) -> Tensor:
        """(N,): images whose answer is cached."""
        return torch.tensor([key in self.memory for key in keys(levels(x))], dtype=torch.bool)

    def _answers(self, x: Tensor) -> Tensor:
        images = levels(x)
        names = keys(images)
        new = {name: row for row, name in enumerate(names) if name not in self.memory}
        if new:
            self._send(images[list(new.values())], list(new))
        return torch.stack([self.memory[name] for name in names])

    def _send(self, images: Tensor, names: list[bytes]) -> None:
        left = len(names) if self.total is None else self.total - self.asked
        if self.ended is None and left < len(names):
            self.ended = f"the budget of {self.total} queries is spent"
        if self.ended is not None:
            raise BudgetExhausted
        self.asked += len(names)
        try:
            answers = self.ask(images)
        except OracleUnavailable as reason:
            self.ended = str(reason)
            raise BudgetExhausted from None
        if answers.ndim == 1:
            answers = torch.nn.functional.one_hot(answers, self.classes).float()
        self.classes = self.classes or answers.shape[1]
        self.memory |= dict(zip(names, answers.float(), strict=True))


def levels(x: Tensor) -> Tensor:
    """uint8 (N, C, H, W): the images as in a PNG file."""
    return (x.detach() * 255).round().clamp(0, 255).to(torch.uint8)


def keys(images: Tensor) -> list[bytes]:
    """The cache key of each image."""
    return [row.numpy().tobytes() for row in images.cpu()]
