"""Kinds of models under attack: one file for each capability that can be attacked."""

from models.family import Family
from models.types import ConfigError
from models.victims.boxes import BoxVictim
from models.victims.classes import ClassVictim
from models.victims.core import Victim
from models.victims.pixels import PixelVictim

VICTIMS: tuple[type[Victim], ...] = (ClassVictim, PixelVictim, BoxVictim)
ATTACKED = tuple(victim.capability for victim in VICTIMS)


def victim_of(model: Family) -> Victim | None:
    """How the model can be attacked; None when it cannot."""
    return next((kind() for kind in VICTIMS if isinstance(model, kind.capability)), None)


def settings_for(capabilities: tuple[type, ...]) -> frozenset[str]:
    """Parameters of a request that make sense for one of the kinds alone, of those that have such capabilities."""
    return frozenset().union(*(kind.settings for kind in VICTIMS if issubclass(kind.capability, capabilities)))


SETTINGS = settings_for(ATTACKED)
"""All of these."""


def check_settings(victim: Victim, given: set[str]) -> None:
    """Raises ConfigError for a parameter that is about another kind of model."""
    for name in sorted(given & SETTINGS - victim.settings):
        kinds = " or ".join(kind.title for kind in VICTIMS if name in kind.settings)
        raise ConfigError(
            f"{name} is for models that {kinds}; this one {victim.title}", field=name, remedy="leave it out"
        )


__all__ = ["ATTACKED", "SETTINGS", "VICTIMS", "Victim", "check_settings", "settings_for", "victim_of"]
