"""Kinds of models under attack (victims): one file per capability that can be attacked."""

from models.attacks.core.base import Attack
from models.family import Family
from models.operations.core.base import Params
from models.operations.core.victims.base import Victim
from models.operations.core.victims.classification import ClassificationVictim
from models.operations.core.victims.detection import DetectionVictim
from models.operations.core.victims.discriminator import DiscriminatorVictim
from models.operations.core.victims.latents import EncoderVictim, ReconstructionVictim, TranslationVictim
from models.operations.core.victims.regression import RegressionVictim
from models.operations.core.victims.segmentation import SegmentationVictim
from models.types import ConfigError

VICTIMS: tuple[type[Victim], ...] = (
    ClassificationVictim,
    SegmentationVictim,
    DetectionVictim,
    RegressionVictim,
    TranslationVictim,
    ReconstructionVictim,
    EncoderVictim,
    DiscriminatorVictim,
)
"""Without a goal in the request, the first of these that fits the model is attacked."""
ATTACKED = tuple(dict.fromkeys(victim.capability for victim in VICTIMS))
SETTINGS = frozenset().union(*(kind.settings for kind in VICTIMS))
"""Parameters of a request that only some kinds understand."""


def victim_of(model: Family, params: Params | None = None) -> Victim | None:
    """The kind of victim that the model is for this goal; None if it cannot be attacked. Raises ConfigError."""
    fitting, goal = [kind for kind in VICTIMS if kind.fits(model)], getattr(params, "goal", None)
    if goal is None:
        return next((kind(params) for kind in fitting), None)
    for kind in fitting:
        if goal in kind.goals or not kind.goals:  # a kind without goals rejects the setting itself
            return kind(params)
    goals = ", ".join(name for kind in fitting for name in kind.goals)
    remedy = f"Choose one of: {goals}." if goals else None
    raise ConfigError(f"This model does not support goal={goal}.", field="goal", remedy=remedy)


def settings_for(attack: type[Attack]) -> frozenset[str]:
    """The parameters of the kinds that the attack supports."""
    return frozenset().union(*(kind.settings for kind in VICTIMS if kind.suits(attack)))


def check_settings(victim: Victim, names: set[str]) -> None:
    """Raises ConfigError for a parameter of another kind of model."""
    for name in sorted(names & SETTINGS - victim.settings):
        kinds = " or ".join(kind.title for kind in VICTIMS if name in kind.settings)
        raise ConfigError(
            f"{name} is for a model that {kinds}; this model {victim.title}.", field=name, remedy=f"Remove {name}."
        )


__all__ = ["ATTACKED", "SETTINGS", "VICTIMS", "Victim", "check_settings", "settings_for", "victim_of"]
