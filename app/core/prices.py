"""What attacks cost, in passes through the model: computed from the catalog before anything runs.

The catalog gives each attack two expressions over its settings: the most forward and backward passes of one image.
Repairs of single images after rounding are not counted.
"""

import ast
import operator
from typing import Any

from app.core import catalog
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
    """The most passes that a report costs. `shape` has images (of the dataset), classes and pixels (of the model).

    A minimum-norm attack answers all radii of a curve from one run; others run once for each.
    """
    attacks = {"attack_forwards": 0.0, "attack_backwards": 0.0}
    for item in params.get("attacks") or ():
        entry = catalog.attack(entries, item["method"])
        runs = 1 if entry["minimal"] else len(params["eps"])
        forwards, backwards = of_attack(entry, item, shape["classes"], shape["pixels"])
        attacks["attack_forwards"] += runs * forwards
        attacks["attack_backwards"] += runs * backwards
    names = params | shape | attacks
    names |= {f"count_{name}": len(value) for name, value in params.items() if isinstance(value, list)}
    names["images"] = min(params.get("images") or shape["images"], shape["images"])
    found = {name: round(evaluate(report["price"][name], names)) for name in ("forwards", "backwards")}
    return found | {"passes": sum(found.values())}


def check(price: dict[str, int]) -> None:
    """Raises QuotaExceeded with the price when it is beyond what one job may cost."""
    most = settings().max_passes_per_job
    if price["passes"] > most:
        raise QuotaExceeded(
            f"This would take up to {price['passes']:,} passes through the model; one job may take {most:,}.",
            remedy="Ask for fewer images, attacks, steps or values of eps.",
            price=price | {"limit": most},
        )
