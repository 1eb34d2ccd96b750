"""The contract of every family in the folder: a new file is under test the moment it exists."""

import math

import pytest
import torch

from models import registry
from models.capabilities import Encodes, takes_labels
from models.data import IMAGES
from models.family import Family
from models.operations.core.base import Operation
from models.training.loop import Meter, Training
from models.types import ConfigError, DataError, DataSpec
from tests.models.data import LAYOUTS, dataset, for_family

FAMILIES = [pytest.param(family, id=name) for name, family in registry.families().items()]
SHAPES = [pytest.param((1, 8, 8), id="8x8-grey"), pytest.param((1, 28, 28), id="28x28-grey")]
SHAPES += [pytest.param((3, 17, 33), id="17x33-colour"), pytest.param((3, 64, 64), id="64x64-colour")]
SHORT = {"images": 12, "batch_size": 4}
EXACT = {"rtol": 0, "atol": 0}


def build(family: type[Family], shape=(1, 8, 8), seed: int = 0, **config) -> Training:
    spec, train, validation = for_family(family, shape)
    torch.manual_seed(seed)
    if "width" in family.Config.model_fields and shape[1] > 8:
        config = {"width": 8} | config
    try:
        model = family.create(SHORT | config, spec)
    except DataError as error:
        pytest.skip(error.detail)
    return Training(model, train, validation, seed=seed)


def operations(family: type[Family]) -> list[Operation]:
    """What models of the family can be asked; attacks, and what looks at a dataset, have their own contracts."""
    able = [item for item in registry.operations().values() if item.fits(family)]
    return [item() for item in able if not (item.gradients or item.dataset or item.report)]


def inputs(operation: Operation, model: Family, seed: int = 0) -> torch.Tensor | None:
    draws = torch.Generator().manual_seed(seed)
    if operation.takes == "nothing":
        return None
    if operation.takes == "images" or (operation.takes == "either" and isinstance(model, Encodes)):
        pairs = operation.name == "score" and getattr(model, "scores_pairs", False)
        return torch.rand(6 if pairs else 3, *model.data.shape, generator=draws)
    return torch.randn(3, model.latent_dim, generator=draws)


def params(operation: Operation, model: Family):
    label = {"label": 1} if "label" in operation.Params.model_fields and operation.takes != "nothing" else {}
    given = label if takes_labels(model) else {}
    return operation.Params(**given, **({"n": 3} if "n" in operation.Params.model_fields else {}))


def trained(family: type[Family], shape) -> tuple[Training, dict[str, float]]:
    training = build(family, shape)
    meter = Meter()
    for step in training.run():
        meter.add(step.metrics)
        assert all(math.isfinite(value) for value in meter.pop_means().values())
    assert step.images == step.total == training.family.total
    return training, training.finish()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_trains_evaluates_and_serves(family, shape):
    training, measured = trained(family, shape)
    assert measured and all(math.isfinite(value) for value in measured.values())
    picture = training.snapshot()
    assert picture is None or (picture.ndim == 4 and picture.min() >= 0 and picture.max() <= 1)

    learned = training.family
    served = family.create(learned.config.model_dump(), learned.data).load_for_serving(learned.serving_state())
    learned.eval()
    assert not any(parameter.requires_grad for parameter in served.parameters())
    for operation in operations(family):
        given, asked = inputs(operation, served), params(operation, served)
        rows = operation.rows(served, given, asked)
        with torch.inference_mode():
            found, expected = (operation.compute(model, rows, asked) for model in (served, learned))
            for name in found:
                torch.testing.assert_close(found[name], expected[name], **EXACT, msg=f"{operation.name}: {name}")
            result = operation.result(served, rows, found, asked)
        if operation.gives == "images" and result.images.ndim == 3:  # class indices
            assert result.images.dtype == torch.uint8 and result.images.max() < len(served.data.classes)
        elif operation.gives == "images":
            assert result.images.shape[1] in {shape[0], 3}  # 3 where something is drawn in colour
            assert result.images.min() >= 0 and result.images.max() <= 1
        if operation.gives == "latents":
            assert result.latents.shape == (3, served.latent_dim)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 17, 33)], ids=["8x8-grey", "17x33-colour"])
@pytest.mark.parametrize("family", FAMILIES)
def test_row_results_do_not_depend_on_the_batch(family, shape):
    model = build(family, shape).family.eval().requires_grad_(False)
    for operation in operations(family):
        asked = params(operation, model)
        first, second = (operation.rows(model, inputs(operation, model, seed), asked) for seed in (0, 1))
        mixed = {name: torch.cat([column[:1], second[name][1:]]) for name, column in first.items()}
        with torch.inference_mode():
            alone, shared = (operation.compute(model, rows, asked) for rows in (first, mixed))
        for name in alone:
            torch.testing.assert_close(alone[name][0], shared[name][0], **EXACT, msg=f"{operation.name}: {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_resumed_training_equals_unbroken_training_bit_for_bit(family):
    whole = build(family, images=20)
    states, curve = [whole.state()], []
    for step in whole.run():
        states.append(whole.state())
        curve.append({name: float(value) for name, value in step.metrics.items()})
    measured = whole.finish()
    for done, state in enumerate(states):
        resumed = build(family, images=20)
        torch.manual_seed(99 + done)  # whatever the process drew before
        resumed.restore(state)
        assert [{n: float(v) for n, v in step.metrics.items()} for step in resumed.run()] == curve[done:]
        final = resumed.state()
        assert final.facts == states[-1].facts and final.tensors.keys() == states[-1].tensors.keys()
        for name, tensor in final.tensors.items():
            assert torch.equal(tensor, states[-1].tensors[name]), name
    assert resumed.finish() == measured


@pytest.mark.parametrize("family", FAMILIES)
def test_config_defaults_come_from_the_data_and_are_idempotent(family):
    spec, train, validation = for_family(family, (1, 28, 28))
    model = family.create({}, spec)
    again = family.resolve_config(model.config, spec)
    assert again == model.config
    assert family.create(model.config.model_dump(), spec).config == model.config
    Training(model, train, validation).advance()
    large = DataSpec(
        spec.layout, 64, 64, 3, spec.classes, {side: {"images": 60_000, "labels": 60_000} for side in spec.columns}
    )
    assert family.resolve_config(family.Config(effort="full"), large).images >= 60_000


@pytest.mark.parametrize("family", FAMILIES)
def test_the_config_says_what_every_field_means_and_what_it_may_be(family):
    fields = family.Config.model_json_schema()["properties"]
    for name, field in fields.items():
        assert len(field.get("description", "")) > 10, f"{name} has no description"
        assert "default" in field, f"{name} has no default"
        for option in field.get("anyOf", [field]):
            if option.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & option.keys(), f"{name} has no lower bound"
                assert {"maximum", "exclusiveMaximum"} & option.keys(), f"{name} has no upper bound"
    assert family.summary and set(family.layouts) <= LAYOUTS.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_config_and_lacking_columns_are_refused_by_name(family):
    spec = for_family(family)[0]
    with pytest.raises(ConfigError) as caught:
        family.create({"learning_rate": -1}, spec)
    assert caught.value.field == "config/learning_rate"
    with pytest.raises(ConfigError):
        family.create({"no_such_setting": 1}, spec)
    bare = DataSpec(spec.layout, 8, 8, 1, spec.classes, {"train": {"something": 8}})
    with pytest.raises(DataError):
        family.create({}, bare)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_value_everywhere_is_data_like_any_other(family):
    """Constant images have no variance, no axes and no clusters."""
    spec, train, validation = for_family(family, (1, 16, 16), count=8)
    for split in (train, validation):
        for name in IMAGES & split.columns.keys():
            split.columns[name][:] = 255
    training = Training(family.create(SHORT, spec), train, validation)
    for step in training.run():
        assert all(torch.isfinite(value) for value in step.metrics.values())
    assert all(math.isfinite(value) for value in training.finish().values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_random_datasets_of_these_tests_are_what_they_claim(layout):
    spec, train, validation = dataset(layout, (3, 17, 33))
    assert spec.count == len(train) == 24 and len(validation) == 6
    batch = train.batch(seed=0, start=0, size=5)
    assert batch.keys() == set(LAYOUTS[layout])
    assert all(batch[name].shape == (5, 3, 17, 33) for name in IMAGES & batch.keys())
