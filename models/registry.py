"""The folders are the registry: every named class in a kind's package is found by importing the package's files."""

import importlib
import inspect
import pkgutil
from functools import cache, partial

KINDS = {  # kind: the package that holds its members, and their base class
    "families": ("models.families", "models.family:Family"),
    "imported": ("models.imported", "models.imported.base:Imported"),
    "attacks": ("models.attacks", "models.attacks.core.base:Attack"),
    "operations": ("models.operations", "models.operations.core.base:Operation"),
    "reports": ("models.reports", "models.reports.core.base:Report"),
    "defences": ("models.defences.stages", "models.defences.stage:Defence"),
    "detectors": ("models.defences.detectors", "models.defences.detector:Detector"),
    "derived": ("models.defences", "models.family:Family"),
}


@cache
def members(kind: str) -> dict[str, type]:
    """Classes of one of KINDS by their `name` and their `aliases`, in alphabetical order.

    A member is a subclass of the kind's base, defined in the package (or a package inside it, except `core`), whose
    class body sets `name`; bases do not.
    """
    package, base = KINDS[kind]
    module, name = base.split(":")
    parent = getattr(importlib.import_module(module), name)
    classes: dict[str, type] = {}
    for path in _modules(package):
        for _, item in inspect.getmembers(importlib.import_module(path), inspect.isclass):
            if item.__module__ == path and issubclass(item, parent) and "name" in vars(item):
                classes |= dict.fromkeys([item.name, *vars(item).get("aliases", ())], item)
    return dict(sorted(classes.items()))


def _modules(package: str) -> list[str]:
    """Dotted names of the modules in `package` and the packages inside it, without those in `core`."""
    paths = []
    for entry in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
        if not entry.ispkg:
            paths.append(entry.name)
        elif not entry.name.endswith(".core"):
            paths += _modules(entry.name)
    return sorted(paths)


families = partial(members, "families")
imported = partial(members, "imported")
attacks = partial(members, "attacks")
operations = partial(members, "operations")
reports = partial(members, "reports")
defences = partial(members, "defences")
detectors = partial(members, "detectors")
derived = partial(members, "derived")


def models() -> dict[str, type]:
    """Everything that can be published and served."""
    return families() | derived() | imported()


def fitting(family: type) -> list[str]:
    """Names of the operations that models of `family` support."""
    return [name for name, operation in operations().items() if operation.fits(family)]
