"""Kinds of models under attack: one file for each capability that can be attacked."""

from models.attacks.core.base import Attack
from models.family import Family
from models.operations.core.base import Params
from models.operations.core.victims.base import Victim
from models.operations.core.victims.classification import ClassVictim
from models.operations.core.victims.detection import BoxVictim
from models.operations.core.victims.discriminator import JudgementVictim
from models.operations.core.victims.latents import CodeVictim, ReconstructionVictim, TranslationVictim
from models.operations.core.victims.regression import NumberVictim
from models.operations.core.victims.segmentation import PixelVictim
from models.types import ConfigError

VICTIMS: tuple[type[Victim], ...] = (
    ClassVictim,
    PixelVictim,
    BoxVictim,
    NumberVictim,
    TranslationVictim,
    ReconstructionVictim,
    CodeVictim,
    JudgementVictim,
)
"""Of those that fit a model the first is meant when a request names no goal."""
ATTACKED = tuple(dict.fromkeys(victim.capability for victim in VICTIMS))
SETTINGS = frozenset().union(*(kind.settings for kind in VICTIMS))
"""Parameters of a request that make sense for some kinds only."""


def victim_of(model: Family, params: Params | None = None) -> Victim | None:
    """How the model can be attacked; None when it cannot. Raises ConfigError for a goal that it does not know."""
    fitting, goal = [kind for kind in VICTIMS if kind.fits(model)], getattr(params, "goal", None)
    if goal is None:
        return next((kind(params) for kind in fitting), None)
    for kind in fitting:
        if goal in kind.goals or not kind.goals:  # a kind without goals says itself that the setting is not for it
            return kind(params)
    known = " or ".join(name for kind in fitting for name in kind.goals)
    raise ConfigError("this model knows no such goal", field="goal", remedy=f"give {known}" if known else None)


def settings_for(attack: type[Attack]) -> frozenset[str]:
    """Those that make sense for one of the kinds that the attack suits."""
    return frozenset().union(*(kind.settings for kind in VICTIMS if kind.suits(attack)))


def check_settings(victim: Victim, given: set[str]) -> None:
    """Raises ConfigError for a parameter that is about another kind of model."""
    for name in sorted(given & SETTINGS - victim.settings):
        kinds = " or ".join(kind.title for kind in VICTIMS if name in kind.settings)
        raise ConfigError(
            f"{name} is for a model that {kinds}; this one {victim.title}", field=name, remedy="leave it out"
        )


__all__ = ["ATTACKED", "SETTINGS", "VICTIMS", "Victim", "check_settings", "settings_for", "victim_of"]
