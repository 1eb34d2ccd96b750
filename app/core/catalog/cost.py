"""The price of operations, attacks and reports in passes through the model, computed before anything runs.

In the catalog each attack has two expressions over its settings, the maximum forward and backward passes of one image;
each operation, and each report with attacks, has two over its params. Corrections of single images after rounding are
not counted. `Rates` predicts seconds from passes.
"""

import ast
import operator
from collections import OrderedDict
from functools import lru_cache
from typing import Any, NamedTuple

from app.core.catalog import Catalog
from app.core.errors import QuotaExceeded
from app.core.settings import settings

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.Pow: operator.pow}  # fmt: skip
FUNCTIONS = {"min": min, "max": max}
BACKWARD = 1.7
"""Time of a backward pass in units of a forward pass."""
CHUNK = 8
"""Images of a request that go through a small model together (workers/inference/batching.py)."""
BATCH_SECONDS, PASS_SECONDS, PIXEL_SECONDS, PARAMETER_SECONDS = 1e-3, 2e-5, 1e-7, 2e-10
"""The guess before a model is measured, on one core: for a batch, and for each image, value and weight in it."""
SMOOTHING = 0.05
"""Seconds by the guess that count as much as measurements: short calls say little about long ones."""
MAX_CHOICE = 40
"""Characters of the longest choice of a parameter."""
DECAY, MAX_RATES = 0.9, 4096


def evaluate(expression: str, names: dict[str, Any]) -> float:
    """The value of sums, products, powers, min and max over `names`. Raises ValueError for anything else."""
    return _value(_parsed(expression), names)


@lru_cache(1024)
def _parsed(expression: str) -> ast.AST:
    return ast.parse(expression, mode="eval").body


@lru_cache(1024)
def _zeros(expression: str) -> dict[str, int]:
    """0 for each name of an expression: capabilities that a model lacks, and choices that are not taken."""
    return {node.id: 0 for node in ast.walk(_parsed(expression)) if isinstance(node, ast.Name)}


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


class Passes(NamedTuple):
    """The maximum passes of one request. `batches`: forward passes one after the other, each of several images."""

    forwards: float
    backwards: float
    batches: float

    @property
    def total(self) -> int:
        return round(self.forwards + self.backwards)

    @property
    def weight(self) -> float:
        """The passes in units of a forward pass."""
        return self.forwards + BACKWARD * self.backwards


def of_operation(entries: Catalog, operation: str, params: dict[str, Any], about: dict[str, Any], rows: int) -> Passes:
    """The maximum passes of a request with complete `params`, whose answer has `rows` images.

    `about` has inputs (images or latents of the request), tiles (of an image that is cut into tiles), pixels and
    classes of the model, groups (of ages), dataset (images of the dataset that is read) and the model's capabilities
    as 1. Names in the expressions: those, the params (0 for null), `count_x` for the length of
    a list x, `x_y` (1 or 0) whether the choice x is y, and for an attack `attack_forwards` and `attack_backwards` of
    one image with all values of eps.
    """
    entry = entries["operations"][operation]
    expressions = entry.get("price") or {"forwards": "inputs", "backwards": "0"}
    names: dict[str, Any] = dict(_zeros(expressions["forwards"]))
    names |= _zeros(expressions["backwards"]) | {key: 0 if value is None else value for key, value in params.items()}
    for name, value in params.items():
        if isinstance(value, list):
            names[f"count_{name}"] = len(value)
        elif isinstance(value, str) and len(value) < MAX_CHOICE:
            names[f"{name}_{value}"] = 1
    at_once = expressions.get("at_once", "1")
    if "branches" in entry["params"]:
        attack = entries["attacks"][params["method"]]
        sweep = params.get("sweep") or ()
        radii = len(sweep) if isinstance(sweep, list | tuple) else attack["sweep"]
        runs = 1 + (min(radii, params.get("eps") is not None) if attack["minimal"] else radii)
        forwards, backwards = of_attack(attack, params, about["classes"], about["pixels"])
        names |= {"attack_forwards": runs * forwards, "attack_backwards": runs * backwards}
        at_once = attack["price"].get("at_once", "1")
    names |= about
    forwards, backwards = evaluate(expressions["forwards"], names), evaluate(expressions["backwards"], names)
    together = max(1, evaluate(at_once, names)) * max(1, min(rows, CHUNK))
    return Passes(forwards, backwards, max(1.0, (forwards + BACKWARD * backwards) / together))


class Rates:
    """Seconds of a pass through each model, learned from answers; before the first a guess from its size.

    A prediction is `factor * (batches * BATCH_SECONDS + passes * guess)`; the factor is learned for each key, which
    names a version of a model and a kind of operation. Thread-safe where dictionaries are.
    """

    def __init__(self) -> None:
        self._measured: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def predict(self, key: tuple[str, str], passes: Passes, pixels: int, parameters: int) -> tuple[float, bool]:
        """(seconds, whether they rest on a measurement of this model)."""
        measured = self._measured.get(key) or self._measured.get((key[0], ""))
        spent, nominal = measured or (0.0, 0.0)
        factor = (spent + SMOOTHING) / (nominal + SMOOTHING)
        return factor * _nominal(passes, pixels, parameters), nominal >= SMOOTHING

    def learn(self, key: tuple[str, str], passes: Passes, pixels: int, parameters: int, seconds: float) -> None:
        """`seconds` were spent on `passes`."""
        spent, nominal = self._measured.pop(key, (0.0, 0.0))
        self._measured[key] = [DECAY * spent + seconds, DECAY * nominal + _nominal(passes, pixels, parameters)]
        if len(self._measured) > MAX_RATES:
            self._measured.popitem(last=False)


def _nominal(passes: Passes, pixels: int, parameters: int) -> float:
    guess = PASS_SECONDS + pixels * PIXEL_SECONDS + parameters * PARAMETER_SECONDS
    return passes.batches * BATCH_SECONDS + passes.weight * guess


def of_report(
    entries: Catalog, report: dict[str, Any], params: dict[str, Any], shape: dict[str, int]
) -> dict[str, int]:
    """The maximum passes of a report. `shape` has validation and train (images of the dataset), classes and pixels.

    Names in the expressions: params and shape, `count_x` for the length of a list x, `x_y` (1 or 0) whether the choice
    x is y, `images` (requested, at most all), and the results of `of_attacks`, `of_defences` and `of_detector`.
    """
    choices = {f"{name}_{value}": 1 for name, value in params.items() if isinstance(value, str)}
    names = _zeros(report["price"]["forwards"]) | _zeros(report["price"]["backwards"]) | choices | params | shape
    names |= {f"count_{name}": len(value) for name, value in params.items() if isinstance(value, list)}
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
