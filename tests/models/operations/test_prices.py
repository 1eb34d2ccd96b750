"""What an operation quotes beforehand for a request is what it spends: never less, and hardly more."""

import ast
from functools import cache

import pytest
import torch

from app.core import catalog
from app.core.catalog import cost
from models import registry
from models.capabilities import Encodes, takes_labels
from models.catalog import capabilities
from models.defences.defended import defend
from models.evaluation.clustering import Clustering
from models.evaluation.dataset_view import DatasetView
from models.family import Family
from models.operations.core.base import Operation
from tests.models.data import dataset, for_family
from tests.models.reports.test_prices import counting_backwards

NETWORKS = (
    "encode", "decode", "logits", "pixel_logits", "detection_maps", "estimate", "translate", "translate_tiles",
    "refine", "denoise", "posterior", "age_logits", "identity_features", "real_log_odds", "patches", "mix",
    "adversarial_score", "infer_labels", "negative_elbo",
)  # fmt: skip
"""Methods of capabilities that run a network; what they call among themselves is counted once."""
COUNT = 3
GIVEN = {
    "age": {"all": True, "steps": 5},
    "anomaly": {"split": "all"},
    "certify": {"n": 400, "sigma": 0.5},
    "cluster": {"report": "r"},
    "directions": {"from": 0, "to": 1, "alphas": [0.0, 0.5, 1.0]},
    "grid": {"rows": 3, "columns": 4},
    "interpolate": {"steps": 5},
    "map": {"images": 10, "atlas": 4},
    "neighbours": {"n": 4},
    "project": {"steps": 6},
    "samples": {"n": 5},
    "similar": {"index": 1},
}
LABELLED = ("grid", "interpolate", "decode")
ATTACKS = {
    "fgsm": {"sweep": True, "control": True},
    "pgd": {"steps": 4, "restarts": 2, "sweep": [0.01, 0.02]},
    "cw": {"steps": 6, "searches": 2},
    "zoo": {"steps": 3, "searches": 2, "coordinates": 4},
    "boundary": {"steps": 10, "tries": 5},
    "hopskipjump": {"steps": 2, "samples": 10, "tries": 5},
    "deepfool": {"eps": 0.5, "sweep": [0.1, 0.5]},
    "square": {"queries": 20},
}


class Meter:
    """Images that go forwards and backwards through the networks of a model."""

    def __init__(self, patch: pytest.MonkeyPatch, model: Family):
        self.forwards = self.backwards = self.depth = 0
        for name in NETWORKS:
            if hasattr(type(model), name):
                patch.setattr(type(model), name, self._counted(getattr(type(model), name), name))

    def _counted(self, plain, name: str):
        meter = self

        def counted(model, inputs, *rest, **more):
            if meter.depth:
                return plain(model, inputs, *rest, **more)
            meter.forwards += len(inputs) * (1 + len(rest[0]) if name == "negative_elbo" else 1)
            meter.depth += 1
            try:
                outputs = plain(model, inputs, *rest, **more)
            finally:
                meter.depth -= 1
            return counting_backwards(meter, outputs) if isinstance(outputs, torch.Tensor) else outputs

        return counted


@cache
def model_for(name: str) -> Family:
    """An untrained model of the first family that supports the operation."""
    kind = registry.operations()[name]
    families = [family for family in registry.families().values() if kind.fits(family)]
    torch.manual_seed(0)
    if not families:
        family = registry.families()["classifier"]
        spec, train, _ = for_family(family)
        model = defend(family.create({"images": 12, "batch_size": 4}, spec), "plain", [], None)
        model.calibrate(train.head(8)["images"])
        return model
    family = families[0]
    spec, _, _ = for_family(family)
    return family.create({"images": 12, "batch_size": 4}, spec).eval().requires_grad_(False)


def inputs_for(operation: Operation, model: Family) -> torch.Tensor | None:
    draws = torch.Generator().manual_seed(0)
    if operation.takes == "nothing":
        return None
    if operation.takes == "latents" or (operation.takes == "either" and not isinstance(model, Encodes)):
        return torch.randn(COUNT, model.latent_dim, generator=draws)
    count = 2 * COUNT if getattr(model, "scores_pairs", False) and operation.name == "score" else COUNT
    return torch.rand(count, *model.data.shape, generator=draws)


def remembered():
    """A cache of measurements, as a worker has one."""
    known = {}

    def cache(key: str, numbers: int, compute):
        if key not in known:
            known[key] = compute()
        return known[key]

    return cache


def about(model: Family, operation: Operation, inputs: torch.Tensor | None, view: DatasetView | None) -> dict:
    count = 1 if inputs is None else len(inputs)
    data = model.data
    facts = {"inputs": count, "tiles": 1, "pixels": data.pixels, "classes": len(data.classes or ())}
    facts |= {"groups": len(getattr(model, "age_groups", ())), "dataset": len(view.select()) if view else 0}
    return facts | dict.fromkeys(capabilities(model), 1)


def run(name: str, given: dict, meter: pytest.MonkeyPatch) -> tuple[Meter, cost.Passes]:
    model, operation = model_for(name), registry.operations()[name]()
    view = None
    if operation.dataset:
        spec, train, validation = dataset("labelled", model.data.shape)
        sides = {"train": train, "validation": validation}
        view = operation.view = DatasetView(model, "set", spec, sides, remembered())
    if operation.report is not None:
        draws = torch.Generator().manual_seed(0)
        codes = torch.randn(20, model.latent_dim, generator=draws)
        operation.fitted = Clustering.fit(codes, 2, "kmeans", 0).pack({"clusters": [{}, {}]})
    if takes_labels(model) and name in LABELLED:
        given = given | {"label": 0}
    params, inputs = operation.Params(**given), inputs_for(operation, model)
    counted = Meter(meter, model)
    rows = operation.rows(model, inputs, params)
    with torch.set_grad_enabled(operation.gradients):
        outputs = operation.compute(model, rows, params)
    with torch.no_grad():
        operation.result(model, rows, {key: value.detach() for key, value in outputs.items()}, params)
    sent = params.model_dump(mode="json", by_alias=True)
    return counted, cost.of_operation(catalog.load(), name, sent, about(model, operation, inputs, view), COUNT)


NAMES = [name for name, kind in registry.operations().items() if name == kind.name != "attack"]


@pytest.mark.parametrize("name", NAMES)
def test_operation_spends_at_most_its_quote_and_not_much_less(name, monkeypatch):
    spent, quoted = run(name, GIVEN.get(name, {}), monkeypatch)
    assert 0 < spent.forwards <= quoted.forwards, (spent.forwards, quoted)
    assert spent.backwards <= quoted.backwards, (spent.backwards, quoted)
    assert spent.forwards + spent.backwards >= 0.4 * quoted.total, (spent.forwards, spent.backwards, quoted)


@pytest.mark.parametrize("method", ATTACKS)
def test_attack_spends_at_most_its_quote(method, monkeypatch):
    entry = catalog.load()["attacks"][method]
    given = cost.defaults(entry) | {"method": method, "stop_early": False} | ATTACKS[method]
    given = {name: value for name, value in given.items() if name in entry["params"]["properties"]}
    spent, quoted = run("attack", given, monkeypatch)
    assert 0 < spent.forwards <= quoted.forwards, (spent.forwards, quoted)
    assert spent.backwards <= quoted.backwards, (spent.backwards, quoted)


@pytest.mark.parametrize("name", registry.operations())
def test_expressions_of_a_price_use_known_names_only(name):
    """A name that is unknown would count as 0."""
    entries = catalog.load()
    entry = entries["operations"][name]
    known = {"inputs", "tiles", "dataset", "groups", "attack_forwards", "attack_backwards"}
    known |= {item for family in entries["families"].values() for item in family["capabilities"]} | {"control"}
    for key, spec in entry["params"].get("properties", {}).items():
        known |= {key, f"count_{key}"} | {f"{key}_{choice}" for choice in spec.get("enum", ())}
    for expression in entry["price"].values():
        names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)}
        assert names - {"min", "max"} <= known


def test_a_sweep_of_a_minimal_attack_costs_one_run_more_and_of_others_one_per_eps():
    entries = catalog.load()
    facts = {"inputs": 2, "classes": 10, "pixels": 784, "dataset": 0, "tiles": 1, "groups": 0}

    def forwards(method: str, **given) -> float:
        params = cost.defaults(entries["attacks"][method]) | {"method": method} | given
        return cost.of_operation(entries, "attack", params, facts, 2).forwards

    assert forwards("fgsm", sweep=[0.1, 0.2]) - forwards("fgsm") == 2 * 2 * 2
    assert forwards("cw", sweep=True) == forwards("cw")
    assert forwards("cw", sweep=True, eps=0.5) == pytest.approx(2 * forwards("cw"), rel=0.01)
    assert forwards("fgsm", sweep=True) > 20 * forwards("fgsm")
