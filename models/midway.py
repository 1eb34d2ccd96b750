"""Families that are measured along their training, with numbers too dear for every update."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from models.context import Moment
from models.data import Columns


class Appraised(ABC):
    """Asked by the engine, in eval mode and without gradients; what is found stands beside the curves."""

    @abstractmethod
    def appraisals(self) -> Iterable[int]:
        """Counts of images after which to ask: the config alone decides them."""

    @abstractmethod
    def appraise(self, train: Columns, validation: Columns, moment: Moment) -> dict[str, float]:
        """The numbers. Nothing that training depends on changes, unless a buffer remembers it."""
