"""Defaults of the translators by effort, and how their training images are mirrored and shifted."""

import numpy as np
import pytest
import torch

from models.context import StepContext
from models.data import Columns
from models.families.translation.augment import jittered, mirrors_alike
from models.families.translation.networks import UNet, initialise
from models.registry import families
from models.types import DataSpec

TRANSLATORS = ("pix2pix", "cyclegan", "cut")


def spec_of(name: str, side: int = 32, count: int = 100) -> DataSpec:
    columns = {"train": dict.fromkeys(families()[name].needs, count)}
    return DataSpec(families()[name].layouts[0], side, side, 3, columns=columns)


def drawings(slant: int, count: int = 60, side: int = 20) -> torch.Tensor:
    """Black bars of random width, lowest row in the middle; each higher quarter is shifted right by `slant` pixels."""
    draws = np.random.default_rng(0)
    images = np.ones((count, 1, side, side), np.float32)
    for image in images[:, 0]:
        half, top = draws.integers(1, 5), draws.integers(0, 8)
        for row in range(top, side):
            middle = side // 2 + slant * ((side - 1 - row) * 4 // side)
            image[row, middle - half : middle + half] = 0
    return torch.from_numpy(images)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_full_effort_and_stored_models_keep_the_settings_of_their_release(name):
    family, spec = families()[name], spec_of(name)
    before = {"learning_rate": 2e-4, "width": 32, "batch_size": family.default_batch, "mirror": False, "jitter": 0.0}
    for config in ({"effort": "full"}, family.stored_config({}, spec, 1)):
        complete = family.complete_config(config, spec)
        assert {key: getattr(complete, key) for key in before} == before and complete.skip is False
        assert getattr(complete, "generator", None) == {"pix2pix": "unet", "cyclegan": "resnet"}.get(name)


@pytest.mark.parametrize("name", TRANSLATORS)
def test_shorter_trainings_take_larger_batches_and_jittered_images(name):
    family, spec = families()[name], spec_of(name)
    lesson, good = (family.complete_config({"effort": effort}, spec) for effort in ("lesson", "good"))
    assert lesson.batch_size == good.batch_size == 8 and lesson.learning_rate == good.learning_rate == 4e-4
    assert (lesson.width, good.width) == (16, 32) and lesson.images <= good.images
    assert lesson.jitter == 1 / 16 and lesson.mirror is None and lesson.skip is True
    assert family.resolve_config(lesson, spec) == lesson
    assert family.complete_config({"effort": "lesson"}, spec_of(name, count=10_000)).jitter == 0
    chosen = {"batch_size": 3, "width": 6, "learning_rate": 1e-3, "mirror": False, "jitter": 0.0, "skip": False}
    complete = family.complete_config({"effort": "lesson"} | chosen, spec)
    assert {key: getattr(complete, key) for key in chosen} == chosen


def test_both_images_of_a_pair_are_mirrored_and_shifted_alike():
    model = families()["pix2pix"].create({"images": 8, "width": 4, "mirror": True, "jitter": 0.2}, spec_of("pix2pix"))
    images = torch.rand(8, 3, 32, 32)
    context = StepContext(0, 8, 0, 0, torch.Generator().manual_seed(0))
    batch = model.augmented({"input": images, "target": 1 - images}, context)
    torch.testing.assert_close(batch["input"], 1 - batch["target"])
    assert not any(torch.equal(one, other) for one, other in zip(batch["input"], images, strict=True))


def test_images_without_pairs_are_moved_on_their_own():
    model = families()["cyclegan"].create(
        {"images": 8, "width": 4, "mirror": False, "jitter": 0.2}, spec_of("cyclegan")
    )
    images = torch.rand(8, 3, 32, 32)
    batch = model.augmented({"a": images, "b": images}, StepContext(0, 8, 0, 0, torch.Generator().manual_seed(0)))
    assert not torch.equal(batch["a"], batch["b"])
    model.config = model.config.model_copy(update={"jitter": 0.0})
    same = model.augmented({"a": images, "b": images}, StepContext(0, 8, 0, 0, torch.Generator()))
    assert torch.equal(same["a"], images)


def test_about_half_of_the_images_are_mirrored():
    images = torch.rand(200, 1, 6, 6)
    made = jittered(images, True, 0.0, torch.Generator().manual_seed(1))
    mirrored = (made == images.flip(3)).flatten(1).all(1)
    assert 70 < int(mirrored.sum()) < 130 and ((made == images).flatten(1).all(1) | mirrored).all()


def test_upright_pairs_may_be_mirrored_and_pairs_with_slanted_targets_may_not():
    upright, slanted = drawings(0), drawings(2)
    assert mirrors_alike({"input": upright, "target": 1 - upright})
    assert not mirrors_alike({"input": upright, "target": slanted})
    assert mirrors_alike({"a": upright, "b": 1 - upright})
    assert not mirrors_alike({"a": upright, "b": slanted})


@pytest.mark.parametrize("name, mirror", [("pix2pix", True), ("cyclegan", False)])
def test_the_dataset_decides_about_mirroring_before_the_first_update(name, mirror):
    family = families()[name]
    one, other = ((255 * images).byte().numpy() for images in (drawings(0), drawings(0 if mirror else 2)))
    spec = DataSpec(family.layouts[0], 20, 20, 1, columns={"train": dict.fromkeys(family.needs, len(one))})
    model = family.create({"images": 8, "width": 4}, spec)
    model.before_training(Columns(dict(zip(family.needs, (one, other), strict=True))))
    assert model.config.mirror is mirror
    model = family.create({"images": 8, "width": 4, "mirror": not mirror}, spec)
    model.before_training(Columns(dict(zip(family.needs, (one, other), strict=True))))
    assert model.config.mirror is (not mirror)


def test_lines_are_learned_sooner_with_a_map_from_the_input():
    draws = torch.Generator().manual_seed(0)
    images = (torch.rand(8, 1, 16, 16, generator=draws) > 0.7).float() * 2 - 1
    errors = []
    for skip in (False, True):
        torch.manual_seed(0)
        net = initialise(UNet(1, 1, 8, 3, skip=skip))
        optimiser = torch.optim.Adam(net.parameters(), 4e-4)
        for _ in range(150):
            loss = (net(images).tanh() + images).abs().mean()  # to invert them
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        errors.append(float(loss.detach()))
    assert errors[1] < 0.75 * errors[0]
