"""The price of attacks and reports in passes through the model, computed from the catalog before anything runs.

In the catalog each attack has two expressions over its settings, the maximum forward and backward passes of one image,
and each report with attacks has two over its params. Corrections of single images after rounding are not counted.
"""

import ast
import operator
from typing import Any

from app.core.catalog import Catalog
from app.core.errors import QuotaExceeded
from app.core.settings import settings

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: operator.pow}  # fmt: skip
FUNCTIONS = {"min": min, "max": max}


def evaluate(expression: str, names: dict[str, Any]) -> float:
    """The value of sums, products, powers, min and max over `names`. Raises ValueError for anything else."""
    return _value(ast.parse(expression, mode="eval").body, names)


def _value(node: ast.AST, names: dict[str, Any]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name) if isinstance(names.get(name), (int, float)):
            return names[name]
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_value(node.left, names), _value(node.right, names))
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            return FUNCTIONS[name](*(_value(argument, names) for argument in node.args))
    raise ValueError(f"not an expression of a price: {ast.unparse(node)}")


def of_attack(entry: dict[str, Any], config: dict[str, Any], classes: int, pixels: int) -> tuple[float, float]:
    """(forward, backward) passes of one image under an attack with a complete config."""
    names = config | {"classes": classes, "pixels": pixels}
    forwards, backwards = (evaluate(entry["price"][name], names) for name in ("forwards", "backwards"))
    return min(forwards, config.get("budget") or forwards), backwards


def of_report(
    entries: Catalog, report: dict[str, Any], params: dict[str, Any], shape: dict[str, int]
) -> dict[str, int]:
    """The maximum passes of a report. `shape` has validation and train (images of the dataset), classes and pixels.

    Names in the expressions: params and shape, `count_x` for the length of a list x, `x_y` (1 or 0) whether the choice
    x is y, `images` (requested, at most all), and the results of `of_attacks`, `of_defences` and `of_detector`.
    """
    names = params | shape
    names |= {f"count_{name}": len(value) for name, value in params.items() if isinstance(value, list)}
    for name, spec in report["params"].get("properties", {}).items():
        names |= {f"{name}_{choice}": int(params.get(name) == choice) for choice in spec.get("enum", ())}
    names |= of_attacks(entries, report, params, shape) | of_defences(entries, params)
    names |= of_detector(entries, params.get("detector") or {}, shape)
    names["images"] = min(params.get("images") or shape["validation"], shape["validation"])
    names["train_images"] = min(params.get("images") or shape["train"], shape["train"])
    price = {name: round(evaluate(report["price"][name], names)) for name in ("forwards", "backwards")}
    return price | {"passes": sum(price.values())}


def of_attacks(
    entries: Catalog, report: dict[str, Any], params: dict[str, Any], shape: dict[str, int]
) -> dict[str, float]:
    """Passes of one image under all attacks of the params: `run_` for one run each, `attack_` for all eps.

    A minimum-norm attack needs one run for all eps.
    """
    totals = dict.fromkeys(("run_forwards", "run_backwards", "attack_forwards", "attack_backwards"), 0.0)
    items = params.get("attacks") or params.get("methods") or [params.get("method")]
    radii = params.get("eps")
    for item in items:
        method = item["method"] if isinstance(item, dict) else item
        entry = entries["attacks"].get(method)
        if entry is None:
            continue
        config = item if isinstance(item, dict) else settings_of(entry, report, params, method)
        runs = len(radii) if isinstance(radii, list) and not entry["minimal"] else 1
        for name, passes in zip(("forwards", "backwards"), _of(entry, config, shape), strict=True):
            totals[f"run_{name}"] += passes
            totals[f"attack_{name}"] += runs * passes
    return totals


def settings_of(entry: dict[str, Any], report: dict[str, Any], params: dict[str, Any], method: str) -> dict[str, Any]:
    """The settings of an attack that the params of a report have by name only."""
    own = report["settings"].get(method, report["settings"].get("", {}))
    passed = {name: params[name] for name in report["forwards_params"] if params.get(name) is not None}
    return defaults(entry) | own | passed


def of_defences(entries: Catalog, params: dict[str, Any]) -> dict[str, int]:
    """`answers`: passes for one answer of the undefended model and of each defended model, summed."""
    draws = params.get("draws") or 1
    random = [any(entries["defences"].get(stage.get("kind"), {}).get("random") for stage in stages)
              for stages in params.get("defences") or ()]  # fmt: skip
    return {"answers": 1 + sum(draws if is_random else 1 for is_random in random)}


def of_detector(entries: Catalog, detector: dict[str, Any], shape: dict[str, int]) -> dict[str, float]:
    """`look`: passes to score one image; `lesson_`: passes to train the detector."""
    entry = entries["detectors"].get(detector.get("kind"), {"passes": 0, "lesson": {}})
    passes_of = {"look": entry["passes"], "lesson_forwards": 0.0, "lesson_backwards": 0.0}
    if not entry["lesson"]:
        return passes_of
    config = defaults(entry) | detector
    passes_per_image = entry["passes"] * (2 + len(config["attacks"]))
    passes_of["lesson_forwards"] = min(config["images"], shape["train"]) * passes_per_image
    for method in config["attacks"]:
        attack = entries["attacks"][method]
        passes = _of(attack, defaults(attack) | entry["lesson"].get(method, {}), shape)
        passes_of["lesson_forwards"] += min(config["images"], shape["train"]) * (passes[0] + 1)
        passes_of["lesson_backwards"] += min(config["images"], shape["train"]) * passes[1]
    return passes_of


def defaults(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: spec.get("default") for name, spec in entry["params"]["properties"].items()}


def _of(entry: dict[str, Any], config: dict[str, Any], shape: dict[str, int]) -> tuple[float, float]:
    return of_attack(entry, config, shape["classes"], shape["pixels"])


def check(price: dict[str, int]) -> None:
    """Raises QuotaExceeded with the price when it is above the limit of a job."""
    limit = settings().max_passes_per_job
    if price["passes"] > limit:
        raise QuotaExceeded(
            f"The job would take up to {price['passes']:,} passes through the model; the maximum is {limit:,}.",
            remedy="Use fewer images, attacks, steps or values of eps.",
            price=price | {"limit": limit},
        )
