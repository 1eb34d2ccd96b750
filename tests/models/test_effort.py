"""What the empty settings become at each effort, for every family and unlike datasets."""

from dataclasses import replace

import pytest
import torch

from models import registry
from models.family import LEAST_UPDATES, MOST_TIMES, Family
from models.training.loop import Training
from models.types import DataError, DataSpec
from tests.models.data import for_family

FAMILIES = [pytest.param(family, id=name) for name, family in registry.families().items()]
SHAPES = {"grey-8": (1, 8, 8), "grey-28": (1, 28, 28), "colour-32": (3, 32, 32), "colour-64": (3, 64, 64)}
COUNTS, CLASSES = (20, 500, 60_000), (2, 1000)
DATASETS = [pytest.param(SHAPES[name], id=name) for name in SHAPES]


def spec_of(family: type[Family], shape: tuple[int, int, int], count: int, classes: int = 10) -> DataSpec:
    """Facts of a dataset that the family takes."""
    spec, _, _ = for_family(family, (1, 8, 8))
    names = tuple(f"class {index}" for index in range(classes)) if spec.classes else None
    columns = {side: dict.fromkeys(columns, count) for side, columns in spec.columns.items()}
    return replace(spec, channels=shape[0], height=shape[1], width=shape[2], classes=names, columns=columns)


def specs(family: type[Family], shape: tuple[int, int, int]) -> list[DataSpec]:
    """Datasets of few and many images, with few and many classes."""
    return [spec_of(family, shape, count, classes) for count in COUNTS for classes in CLASSES]


def completed(family: type[Family], spec: DataSpec, **config) -> Family.Config | None:
    """The config, or None where the family cannot learn from such data (a segmenter of 1,000 classes)."""
    try:
        return family.complete_config(config, spec)
    except DataError:
        return None


@pytest.mark.parametrize("shape", DATASETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_length_keeps_the_time_of_the_effort_or_is_the_full_one(family, shape):
    for spec in specs(family, shape):
        full = completed(family, spec, effort="full")
        for effort, seconds in family.cpu_seconds.items() if full else ():
            config = completed(family, spec, effort=effort)
            cost = config.images * family.milliseconds_per_image(config, spec) / 1000
            assert cost > 0.9 * seconds or config.images == full.images, (effort, spec)
            most = 1 if max(shape[1:]) <= 32 else MOST_TIMES
            assert cost <= seconds * most * 1.01, (effort, spec)
            assert config.images >= min(full.images, LEAST_UPDATES * config.batch_size) or cost > 0.99 * seconds * most


@pytest.mark.parametrize("shape", DATASETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_completing_a_config_twice_changes_nothing(family, shape):
    for spec in specs(family, shape):
        for effort in ("lesson", "good", "full"):
            config = completed(family, spec, effort=effort)
            assert config is None or family.complete_config(config.model_dump(), spec) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_that_are_given_win_at_every_effort(family):
    spec = spec_of(family, (1, 28, 28), 500)
    given = {"batch_size": 24, "learning_rate": 0.0123} | (
        {"width": 8} if "width" in family.Config.model_fields else {}
    )
    for effort in ("lesson", "good", "full"):
        config = family.complete_config(given | {"images": 4800, "effort": effort}, spec)
        assert {name: getattr(config, name) for name in given} == given and config.images == 4800
        config = family.complete_config({"epochs": 7, "effort": effort}, spec)
        assert config.images == 7 * 500 and config.epochs is None


@pytest.mark.parametrize("family", FAMILIES)
def test_more_effort_is_at_least_as_long(family):
    for spec in specs(family, (1, 28, 28)):
        lengths = [completed(family, spec, effort=effort) for effort in ("lesson", "good", "full")]
        images = [config.images for config in lengths if config]
        assert images == sorted(images)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_narrower_network_may_learn_from_more_images(family):
    if "width" not in family.Config.model_fields:
        pytest.skip("no width")
    spec = spec_of(family, (3, 32, 32), 60_000)
    narrow, wide = (completed(family, spec, effort="lesson", width=width) for width in (8, 128))
    assert narrow.images >= wide.images


@pytest.mark.parametrize("family", [item for item in FAMILIES if item.values[0].length_free_until])
def test_first_updates_do_not_depend_on_the_length_where_a_family_says_so(family):
    spec, train, validation = for_family(family, (1, 16, 16))
    grown = {"fade_images": 4, "stabilise_images": 4} if "fade_images" in family.Config.model_fields else {}
    curves = []
    for images in (32, 320):
        torch.manual_seed(0)
        config = {"images": images, "batch_size": 4, "width": 8, "learning_rate": 1e-3, **grown}
        training = Training(family.create(config, spec), train, validation)
        training.family.train()
        steps = [training.advance() for _ in range(round(family.length_free_until * 8))]
        curves.append([{name: float(value) for name, value in step.metrics.items()} for step in steps])
    assert curves[0] == curves[1]


def test_adversarial_training_costs_its_passes():
    family = registry.families()["classifier"]
    spec = spec_of(family, (1, 28, 28), 500)
    plain, attacked = (family.complete_config({"adversarial": method}, spec) for method in ("none", "pgd"))
    assert attacked.images == 2 * plain.images
    assert family.milliseconds_per_image(attacked, spec) == 8 * family.milliseconds_per_image(plain, spec)
