"""The folder is the registry: every concrete class in a package's files is found by importing the files."""

import importlib
import inspect
import pkgutil
from functools import cache
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def discover(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Concrete subclasses of `base` defined in the modules of `package`, by their `name`, in alphabetical order."""
    found: dict[str, type[T]] = {}
    for entry in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
        module = importlib.import_module(f"{package.__name__}.{entry.name}")
        for _, item in inspect.getmembers(module, inspect.isclass):
            if item.__module__ == module.__name__ and issubclass(item, base) and "name" in vars(item):
                found[item.name] = item
    return dict(sorted(found.items()))


@cache
def families() -> dict[str, type]:
    """Every model family by name."""
    import models.families as package
    from models.family import Family

    return discover(package, Family)


@cache
def imported() -> dict[str, type]:
    """Every kind of model that is imported rather than trained, by name."""
    import models.imported as package
    from models.imported.core import Imported

    return discover(package, Imported)


@cache
def attacks() -> dict[str, type]:
    """Every attack by name."""
    import models.attacks as package
    from models.attacks.core import Attack

    return discover(package, Attack)


@cache
def operations() -> dict[str, type]:
    """Every operation by name."""
    import models.operations as package
    from models.operations.core import Operation

    return discover(package, Operation)


@cache
def reports() -> dict[str, type]:
    """Every kind of report by name."""
    import models.reports as package
    from models.reports.core import Report

    return discover(package, Report)


@cache
def defences() -> dict[str, type]:
    """Every stage that can stand in front of a model, by name."""
    import models.defences as package
    from models.defences.core import Defence

    return discover(package, Defence)


@cache
def detectors() -> dict[str, type]:
    """Every detector of adversarial images by name."""
    import models.detectors as package
    from models.detectors.core import Detector

    return discover(package, Detector)


@cache
def derived() -> dict[str, type]:
    """Kinds of models that are made of others, not trained."""
    import models.derived as package
    from models.family import Family

    return discover(package, Family)


def models() -> dict[str, type]:
    """Everything that can be published and served."""
    return families() | derived() | imported()


def fitting(family: type) -> list[str]:
    """Names of the operations that models of `family` can do."""
    return [name for name, operation in operations().items() if operation.fits(family)]
