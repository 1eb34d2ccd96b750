"""Writes what the models can do as JSON files, one for each entry, for code that does not import torch.

`python -m models.catalog` writes `app/core/catalog/entries/<kind>/<name>.json` and removes files of entries that are
gone. With `--check` it writes nothing and exits with 1 if a file is missing, outdated or left over.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from models import capabilities as can
from models import registry
from models.attacks.core.base import Attack
from models.attacks.core.universal import UniversalConfig
from models.defences.detector import Detector
from models.defences.stage import Defence
from models.family import Family
from models.operations.attack import default_sweep, params_schema
from models.operations.core.base import Operation
from models.reports.core.base import Report
from models.types import DataSpec

AGES = tuple(float(age) for age in range(10, 80, 10))
ENTRIES = Path(__file__).parents[1] / "app" / "core" / "catalog" / "entries"


def capabilities(model: type[Family] | Family) -> list[str]:
    """Names of the capabilities of a model, or of every model of a family, in the order of models/capabilities.py."""
    family = model if isinstance(model, type) else type(model)
    defined = [item for item in vars(can).values() if isinstance(item, type) and item.__module__ == can.__name__]
    able = [item for item in defined if issubclass(family, item)]
    return [item.__name__ for item in able if item is not can.Conditional or can.takes_labels(model)]


def catalog() -> dict[str, Any]:
    """Everything, in alphabetical order, as plain JSON."""
    entries = {
        "families": {name: describe_family(item) for name, item in registry.families().items()},
        "attacks": {name: describe_attack(item) for name, item in registry.attacks().items()},
        "operations": {
            name: alias_of(item, name) | describe_operation(item) for name, item in registry.operations().items()
        },
        "reports": {name: alias_of(item, name) | describe_report(item) for name, item in registry.reports().items()},
        "defences": {name: describe_defence(item) for name, item in registry.defences().items()},
        "detectors": {name: describe_detector(item) for name, item in registry.detectors().items()},
    }
    entries["perturbations"] = {"universal": {"params": UniversalConfig.model_json_schema()}}
    return json.loads(json.dumps(entries))


def describe_family(family: type[Family]) -> dict[str, Any]:
    return {
        "summary": family.summary,
        "lecture": family.lecture,
        "layouts": family.layouts,
        "needs": family.needs,
        "capabilities": capabilities(family),
        "operations": registry.fitting(family),
        "length_free_until": family.length_free_until,
        "efforts": {effort: describe_effort(family, effort) for effort in ("lesson", "good", "full")},
        "config": family.Config.model_json_schema(),
    }


def describe_effort(family: type[Family], effort: str) -> dict[str, int]:
    """What an empty config becomes for 5,000 grey images of 28x28 pixels in ten classes, and the CPU time of that."""
    rows = {"train": dict.fromkeys((*family.needs, "labels"), 5000)}
    data = DataSpec(family.layouts[-1], 28, 28, 1, tuple("0123456789"), rows, ages=AGES, identities=100)
    config = family.complete_config({"effort": effort}, data)
    seconds = config.images * family.milliseconds_per_image(config, data) / 1000
    return {"images": config.images, "batch_size": config.batch_size, "cpu_seconds": round(seconds)}


def alias_of(item: type[Operation] | type[Report], name: str) -> dict[str, str]:
    """For an entry under a deprecated name: the name to use."""
    return {} if name == item.name else {"alias_of": item.name}


def names(need: type | tuple[type, ...]) -> str | list[str]:
    """The name of a capability, or those of alternatives."""
    return [item.__name__ for item in need] if isinstance(need, tuple) else need.__name__


def describe_attack(attack: type[Attack]) -> dict[str, Any]:
    return {
        "summary": attack.summary,
        "norms": attack.norms,
        "access": attack.access,
        "victims": [item.__name__ for item in attack.victims],
        "targeted": attack.targeted,
        "minimal": attack.minimal,
        "settings": list(attack.Config.model_fields),
        "sweep": default_sweep(attack),
        "price": {"forwards": attack.forwards, "backwards": attack.backwards, "at_once": attack.at_once},
        "params": params_schema(attack),
    }


def describe_operation(operation: type[Operation]) -> dict[str, Any]:
    branches = {"discriminator": "method", "default": "fgsm", "branches": "attacks"}
    return {
        "summary": operation.summary,
        "needs": [names(item) for item in operation.needs],
        "takes": operation.takes,
        "gives": operation.gives,
        "method": operation.method,
        "sheet": operation.sheet,
        "any_size": operation.any_size,
        "picture_param": operation.picture_param,
        "json_first": operation.json_first,
        "multiplies": operation.multiplies,
        "price": operation.price,
        "dataset": operation.dataset,
        "report": operation.report,
        "params": branches if operation.name == "attack" else operation.Params.model_json_schema(),
    }


def describe_report(report: type[Report]) -> dict[str, Any]:
    return {
        "summary": report.summary,
        "needs": [item.__name__ for item in report.needs],
        "columns": report.columns,
        "price": report.price,
        "settings": report.settings,
        "forwards_params": report.forwards_params,
        "params": report.Params.model_json_schema(),
    }


def describe_defence(stage: type[Defence]) -> dict[str, Any]:
    return {"summary": stage.summary, "random": stage.random, "params": stage.Config.model_json_schema()}


def describe_detector(detector: type[Detector]) -> dict[str, Any]:
    return {
        "summary": detector.summary,
        "passes": detector.passes,
        "lesson": detector.attack_settings,
        "params": detector.Config.model_json_schema(),
    }


def files() -> dict[Path, str]:
    """The text of each entry by its path below the folder of entries."""
    return {
        Path(kind, f"{name}.json"): json.dumps(entry, indent=1, ensure_ascii=False) + "\n"
        for kind, entries in catalog().items()
        for name, entry in entries.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m models.catalog", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is not up to date")
    check = parser.parse_args(arguments).check
    present = {path.relative_to(ENTRIES): path.read_text(encoding="utf-8") for path in ENTRIES.glob("*/*.json")}
    current = files()
    outdated = sorted(path for path in present.keys() | current.keys() if present.get(path) != current.get(path))
    if check and outdated:
        names = ", ".join(map(str, outdated))
        print(f"Out of date: {names}. Run `python -m models.catalog` and commit the result.", file=sys.stderr)
    for path in [] if check else outdated:
        if path in current:
            (ENTRIES / path).parent.mkdir(parents=True, exist_ok=True)
            (ENTRIES / path).write_text(current[path], encoding="utf-8")
        else:
            (ENTRIES / path).unlink()
    return 1 if check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
