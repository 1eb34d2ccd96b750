"""The example of docs/extend/family.md is a working family."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import models.families.autoencoders as package
from models import registry
from models.catalog import capabilities, describe_family
from models.families.autoencoders.vae import VAE
from models.training.loop import Training
from models.types import ConfigError
from tests.models.data import dataset

PAGE = Path(__file__).parents[4] / "docs" / "extend" / "family.md"
SMALL = {"latent_dim": 3, "hidden": [16], "body": "mlp", "batch_size": 16, "images": 480, "learning_rate": 0.01}
OTHER = {
    "beta": 3, "kl_warm_up": 0.5, "free_bits": 0.5, "objective": "kl_only", "likelihood": "gaussian",
    "conditional": True, "body": "linear", "latent_dim": 2, "hidden": [8], "tc_weight": 2,
}  # fmt: skip
"""Another value for each setting that changes the networks or the loss."""
NEUTRAL = {
    "effort", "precision", "deterministic", "compile", "components", "importance_samples", "images", "epochs",
    "batch_size", "learning_rate", "keep", "sampler", "code", "width",
}  # fmt: skip
"""Settings of the training, of samples, of convolutions, and `code`, which has one value."""


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> type[VAE]:
    """The class of the page, found by the registry like any file of the folder."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    folder = tmp_path_factory.mktemp("families")
    (folder / "beta_tcvae.py").write_text(code)
    package.__path__.append(str(folder))
    registry.members.cache_clear()
    yield registry.families()["beta_tcvae"]
    package.__path__.remove(str(folder))
    registry.members.cache_clear()
    del sys.modules[f"{package.__name__}.beta_tcvae"]


@pytest.fixture(scope="module")
def data():
    return dataset("labelled", count=96)


def new(family: type[VAE], data, **config) -> Training:
    torch.manual_seed(0)
    return Training(family.create(SMALL | config, data[0]), data[1], data[2], 1)


def validation_loss(training: Training) -> float:
    training.family.eval()
    return float(training.family.validation_loss(training.validation.head(32), training.context()))


def test_the_example_has_at_most_25_lines_of_code(family):
    tree = ast.parse(Path(sys.modules[family.__module__].__file__).read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    strings = [node for node in statements if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    assert len({node.lineno for node in statements} - {node.lineno for node in strings}) <= 25


def test_total_correlation_is_greater_for_dependent_dimensions(family):
    total_correlation = importlib.import_module(family.__module__).total_correlation
    one, other, logvar = torch.randn(64, 1), torch.randn(64, 1), torch.full((64, 2), -3.0)
    dependent, independent = (torch.cat([one, second], 1) for second in (one, other))
    values = [float(total_correlation(mean, logvar, mean, 64)) for mean in (dependent, independent)]
    assert values[0] > values[1] + 0.5


def test_validation_loss_contains_the_total_correlation(family, data):
    losses = [validation_loss(new(family, data, tc_weight=weight)) for weight in (1, 6, 11)]
    assert losses[0] == pytest.approx(validation_loss(new(VAE, data)), rel=1e-6)
    assert losses[2] - losses[1] == pytest.approx(losses[1] - losses[0], rel=1e-3)
    assert losses[1] > losses[0]


def test_training_keeps_the_weights_with_the_best_loss_of_its_own(family, data):
    training = new(family, data, tc_weight=6)
    assert len(list(training.run())) == 30
    best, losses = training.monitor.best, [reading.validation_loss for reading in training.monitor.readings]
    assert best.validation_loss == min(losses) < losses[0]
    metrics = training.finish()
    training.family.eval()
    probe = training.monitor.probe(training.device)
    assert float(training.family.validation_loss(probe, training.context())) == pytest.approx(best.validation_loss)
    assert metrics["best_images"] == best.images and metrics["nelbo"] > 0 and metrics["fd"] > 0


@pytest.mark.parametrize("setting", sorted({*VAE.Config.model_fields, "tc_weight"} - NEUTRAL))
def test_every_inherited_setting_is_honoured_or_refused(family, data, setting):
    try:
        changed = new(family, data, **{setting: OTHER[setting]})
    except ConfigError as error:
        assert error.field == f"config/{setting}"
        return
    default = new(family, data)
    if setting == "kl_warm_up":  # in training only
        assert default.family.beta(0.25) == 1 and changed.family.beta(0.25) == 0.5
    else:
        assert validation_loss(default) != validation_loss(changed)
    added = {"Conditional"} if setting == "conditional" else set()
    assert set(capabilities(changed.family)) == {*capabilities(family)} | added


def test_models_of_the_example_are_served(family, data):
    spec, _, validation = data
    trained = new(family, data, conditional=True)
    list(trained.run())
    trained.finish()
    served = family.create(trained.family.config.model_dump(mode="json"), spec)
    served.load_for_serving({name: tensor.clone() for name, tensor in trained.family.serving_state().items()})
    images = validation.head(2)["images"]
    for name, inputs, params in (("encode", images, {}), ("reconstruct", images, {}), ("samples", None, {"n": 3})):
        operation = registry.operations()[name]()
        params = operation.Params(**params)
        rows = operation.rows(served, inputs, params)
        result = operation.result(served, rows, operation.compute(served, rows, params), params)
        assert result.latents is not None if name == "encode" else result.images.shape[1:] == (1, 8, 8)


def test_the_catalog_describes_the_example(family):
    entry, vae = describe_family(family), describe_family(VAE)
    assert {name: entry[name] for name in ("capabilities", "operations", "layouts", "needs")} == {
        name: vae[name] for name in ("capabilities", "operations", "layouts", "needs")
    }
    assert entry["config"]["properties"].keys() - vae["config"]["properties"].keys() == {"tc_weight"}
