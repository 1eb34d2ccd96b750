"""Where a translator without pairs begins: at its input where the domains look alike, else from nothing."""

import numpy as np
import pytest
import torch

from models.data import Columns
from models.evaluation.translation import colour_distance
from models.registry import families
from models.training.loop import Training
from models.types import DataSpec

SMALL = {"images": 4, "batch_size": 2, "width": 4}


def domains(far: bool) -> tuple[DataSpec, Columns, Columns]:
    """Grey rectangles on black; in domain B on white where the domains are to be far apart, else on dark grey."""
    draws = np.random.default_rng(0)
    splits = []
    for count in (12, 4):
        images = np.zeros((2, count, 1, 16, 16), np.uint8)
        images[1] = 255 if far else 20
        for image in images.reshape(-1, 16, 16):
            top, left = draws.integers(0, 8, 2)
            image[top : top + 6, left : left + 6] = 130
        splits.append(Columns({"a": images[0], "b": images[1]}))
    columns = {
        name: dict.fromkeys("ab", len(split)) for name, split in zip(("train", "validation"), splits, strict=True)
    }
    return DataSpec("unpaired", 16, 16, 1, columns=columns), *splits


def training(name: str, far: bool, **config) -> Training:
    spec, train, validation = domains(far)
    torch.manual_seed(0)
    return Training(families()[name].create(SMALL | config, spec), train, validation)


@pytest.mark.parametrize("name", ["cyclegan", "cut"])
def test_generators_start_as_copies_where_the_colours_of_the_domains_resemble(name):
    images = torch.rand(2, 1, 13, 18)
    for far, config, copies in ((False, {}, True), (True, {}, False), (True, {"from_input": True}, True)):
        run = training(name, far, **config)
        assert run.family.config.from_input == copies  # the published card says so
        for generators in (run.family.generators, run.family.served):
            assert torch.equal(generators["ab"](images), images) == copies


@pytest.mark.parametrize("name", ["cyclegan", "cut"])
def test_a_published_translator_answers_as_it_did_when_training_ended(name):
    run = training(name, far=False)
    list(run.run())
    images = torch.rand(2, 1, 16, 16)
    wanted = run.family.eval().translate(images, "ab")
    config = run.family.config.model_dump()
    served = families()[name].create(config, run.family.data).load_for_serving(run.family.serving_state())
    assert torch.equal(served.translate(images, "ab"), wanted) and not torch.equal(wanted, images)


def test_weights_stored_before_there_was_a_choice_draw_anew():
    run = training("cyclegan", far=True)
    stored = {name: value for name, value in run.family.serving_state().items() if not name.endswith(".added")}
    images = torch.rand(2, 1, 16, 16)
    for choice in (None, True):
        config = run.family.config.model_dump() | {"from_input": choice}
        served = families()["cyclegan"].create(config, run.family.data).load_for_serving(dict(stored))
        assert torch.equal(served.translate(images, "ab"), run.family.eval().translate(images, "ab"))


def test_weights_of_another_model_keep_their_way():
    images = torch.rand(2, 1, 16, 16)
    for far in (False, True):
        donor = training("cut", far)
        list(donor.run())
        spec, train, validation = domains(not far)
        model = families()["cut"].create(SMALL, spec)
        model.init_from(donor.family)
        assert Training(model, train, validation).family.config.from_input == (not far)
        assert torch.equal(model.translate(images, "ab"), donor.family.eval().translate(images, "ab"))


def test_the_cycle_is_rounded_off_only_for_generators_that_start_from_their_input():
    made, wanted = torch.full((1, 1, 4, 4), 0.52), torch.full((1, 1, 4, 4), 0.5)
    near, far = training("cyclegan", far=False).family, training("cyclegan", far=True).family
    assert float(far.pixel_distance(made, wanted)) == pytest.approx(0.04)
    assert float(near.pixel_distance(made, wanted)) == pytest.approx((0.04**2 + 0.5**2) ** 0.5 - 0.5, abs=1e-6)


def test_cut_is_held_to_the_target_domain_pixel_by_pixel_only_from_its_input():
    losses = {}
    for weight in (0.0, 5.0):
        for far in (False, True):
            run = training("cut", far, lambda_identity=weight)
            run.advance()
            losses[weight, far] = float(run.advance().metrics["loss"])
    assert losses[0.0, True] == losses[5.0, True] and losses[0.0, False] < losses[5.0, False]


def test_the_distance_of_colours_is_how_far_values_have_to_move():
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(40, 2, 8, 8, generator=draws) * 0.5
    shift = torch.tensor([0.1, 0.3]).reshape(1, 2, 1, 1)
    moved = (images + shift).flip(0, 3)
    assert colour_distance(images, moved) == pytest.approx(0.2, abs=0.01)
    assert colour_distance(images, images.flip(2)) == 0


def test_between_two_colours_a_short_training_finds_the_other_one():
    """Red and blue squares on white: what is near starts as a copy and must leave it."""
    draws = np.random.default_rng(1)
    images = np.full((2, 24, 3, 16, 16), 255, np.uint8)
    for domain, colour in zip(images, ((220, 40, 40), (40, 40, 220)), strict=True):
        for image in domain:
            top, left = draws.integers(0, 10, 2)
            image[:, top : top + 6, left : left + 6] = np.array(colour)[:, None, None]
    spec = DataSpec(
        "unpaired", 16, 16, 3, columns={"train": dict.fromkeys("ab", 20), "validation": dict.fromkeys("ab", 4)}
    )
    train, unseen = (Columns({"a": images[0, part], "b": images[1, part]}) for part in (slice(20), slice(20, 24)))
    torch.manual_seed(0)
    model = families()["cyclegan"].create({"images": 600, "batch_size": 4, "width": 8, "learning_rate": 5e-4}, spec)
    run = Training(model, train, unseen)
    list(run.run())
    measured = run.finish()
    inputs = unseen.head(4)["a"]
    truth = inputs.flip(1)
    away = (model.translate(inputs, "ab") - truth).abs().mean()
    assert float(away) < 0.75 * float((inputs - truth).abs().mean())
    assert measured["ab_cycle_l1"] < 0.05
