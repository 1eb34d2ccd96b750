"""What attacks cost, in passes through the model: computed from the catalog before anything runs.

The catalog gives each attack two expressions over its settings: the most forward and backward passes of one image;
and each report that attacks two over its params. Repairs of single images after rounding are not counted.
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
    """The most passes that a report costs. `shape` has validation and train (images of the dataset), classes and pixels
    (of the model).

    Beside params and shape the expressions know `count_x` of a list x, `x_y` (1 or 0) where the choice x is y,
    `images` (asked for, or as many as there are), and what `of_attacks`, `of_defences` and `of_detector` give.
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
    """Passes of one image under all attacks that the params name: `run_` where each runs once, `attack_` over all eps
    of a curve, which a minimum-norm attack answers from one run.
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
    """The settings with which a report runs an attack that its params only name."""
    own = report["settings"].get(method, report["settings"].get("", {}))
    passed = {name: params[name] for name in report["forwards_params"] if params.get(name) is not None}
    return defaults(entry) | own | passed


def of_defences(entries: Catalog, params: dict[str, Any]) -> dict[str, int]:
    """`answers`: passes for one answer of the bare model and of the model behind each of the defences, all added up."""
    draws = params.get("draws") or 1
    random = [any(entries["defences"].get(stage.get("kind"), {}).get("random") for stage in stages)
              for stages in params.get("defences") or ()]  # fmt: skip
    return {"answers": 1 + sum(draws if is_random else 1 for is_random in random)}


def of_detector(entries: Catalog, asked: dict[str, Any], shape: dict[str, int]) -> dict[str, float]:
    """`look`: passes to score one image; `lesson_`: passes to train the detector."""
    entry = entries["detectors"].get(asked.get("kind"), {"passes": 0, "lesson": {}})
    passes_of = {"look": entry["passes"], "lesson_forwards": 0.0, "lesson_backwards": 0.0}
    if not entry["lesson"]:
        return passes_of
    config = defaults(entry) | asked
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
    """Raises QuotaExceeded with the price when it is beyond what one job may cost."""
    limit = settings().max_passes_per_job
    if price["passes"] > limit:
        raise QuotaExceeded(
            f"The job would take up to {price['passes']:,} passes through the model; the maximum is {limit:,}.",
            remedy="Ask for fewer images, attacks, steps or values of eps.",
            price=price | {"limit": limit},
        )
