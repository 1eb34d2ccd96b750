"""What translators without pairs share: a generator that starts from its input where the two domains look alike."""

from pydantic import Field
from torch import Tensor

from models.data import Columns
from models.evaluation.translation import colour_distance, sample
from models.families.translation.base import Translator
from models.family import Config

ALIKE = 0.2
"""Domains whose colours are nearer than this resemble each other: most of an image may stay. Inverted digits: 0.7."""


class UnpairedConfig(Config):
    from_input: bool | None = Field(
        None,
        description="Generators add to the image they are given and start as copies, which keeps what need not change;"
        " false: they draw it anew, as the paper's. Empty: true where the colours of the two domains resemble.",
    )
    softness: float = Field(
        0.5, ge=0, le=2, description="Rounds off each L1 where generators start from their input; 0: the kink stays."
    )


class Unpaired(Translator):
    """Its generators begin once the config, the images or another model's weights have said how."""

    @property
    def adds(self) -> bool:
        """Whether the generators add to their input; that is kept with their weights."""
        return next(iter(self.generators.values())).adds

    def before_training(self, train: Columns) -> None:
        super().before_training(train)
        wanted = self.adds if self.initialised_from is not None else self.config.from_input
        if wanted is None:
            seen = sample(train)
            wanted = colour_distance(seen["a"], seen["b"]) < ALIKE
        self.config = self.config.model_copy(update={"from_input": wanted})
        self.settle()

    def settle(self) -> None:
        """Tell new generators what the config says."""
        for generators in (self.generators, self.served):
            for generator in generators.values():
                network = getattr(generator, "module", generator)
                if self.config.from_input and not network.adds:
                    network.from_input()

    def apart(self, made: Tensor, wanted: Tensor) -> Tensor:
        """L1 over pixels in [-1, 1], rounded off at zero: sqrt(d^2 + s^2) - s (Charbonnier).

        The kink of L1 is a trap for generators that start as copies, where cycle and identity already hold: the first
        step of one of them is punished in full before the other has learned to undo it, and both copy for ever.
        """
        difference, softness = (made - wanted) * 2, self.config.softness
        if not softness or not self.adds:
            return difference.abs().mean()
        return (difference.square() + softness**2).sqrt().mean() - softness
