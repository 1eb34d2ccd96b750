"""Kinds of models under attack: one file for each capability that can be attacked."""

from models.attacks.core import Attack
from models.family import Family
from models.operations.core import Params
from models.types import ConfigError
from models.victims.boxes import BoxVictim
from models.victims.classes import ClassVictim
from models.victims.core import Victim
from models.victims.judgements import JudgementVictim
from models.victims.numbers import NumberVictim
from models.victims.pixels import PixelVictim
from models.victims.points import CodeVictim, ReconstructionVictim, TranslationVictim

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
