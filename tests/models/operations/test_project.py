"""Projection finds the code of an image that a model made, and says how near it came."""

import math

import pytest
import torch

from models.evaluation.latent_search import distance, lr_factor
from models.families.gans.conditional_gan import ConditionalGAN
from models.families.gans.gan import GAN
from models.families.gans.style_gan import StyleGAN
from models.operations.project import Project
from models.types import InputError
from tests.models.families.gans.tiny import build, spec
from tests.tiny import TinyAutoencoder
from tests.tiny import build as tiny


def project(model, images, **params):
    operation = Project()
    asked = operation.Params(**params)
    rows = operation.rows(model, images, asked)
    found = {name: tensor.detach() for name, tensor in operation.compute(model, rows, asked).items()}
    return operation.result(model, rows, found, asked)


@pytest.mark.parametrize("family", [GAN, StyleGAN])
def test_the_picture_of_a_code_is_found_again(family):
    model = build(family, latent_dim=4).eval().requires_grad_(False)
    for layer in model.ema.module.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight *= 4  # as if trained: pictures differ
    wanted = model.decode(model.draw(torch.randn(2, 4, generator=torch.Generator().manual_seed(3)), torch.zeros(2)))
    near, far = project(model, wanted, steps=150), project(model, wanted, steps=1)
    for item, first in zip(near.facts["items"], far.facts["items"], strict=True):
        assert item["distance"] < 0.4 * first["distance"] and item["psnr"] > first["psnr"] + 8
    torch.testing.assert_close(model.decode(near.latents), near.images)
    errors = (near.images - wanted).square().flatten(1).mean(1).sqrt()
    assert [item["distance"] for item in near.facts["items"]] == pytest.approx(errors.tolist(), rel=1e-4)


def test_a_row_is_projected_alone():
    model = build(GAN, latent_dim=4).eval().requires_grad_(False)
    images = torch.rand(3, 1, 8, 8)
    together, alone = project(model, images, steps=5), project(model, images[1:2], steps=5)
    torch.testing.assert_close(together.latents[1:2], alone.latents, atol=1e-4, rtol=1e-4)


def test_more_steps_are_never_worse():
    model, images = build(GAN, latent_dim=4).eval().requires_grad_(False), torch.rand(3, 1, 8, 8)
    rates = {"learning_rate": 1.0}  # wild steps: the best one counts
    start = Project().compute(model, {"inputs": images}, Project.Params(steps=1, **rates))["images"]
    later = Project().compute(model, {"inputs": images}, Project.Params(steps=30, **rates))["images"]
    assert (distance(later, images) <= distance(start, images) + 1e-6).all()


def test_the_search_starts_where_the_model_knows_best():
    model = build(StyleGAN, latent_dim=4).eval().requires_grad_(False)
    typical = model.decode(model.ema.module.centre[None])
    found = project(model, typical, steps=1)
    assert found.facts["items"][0]["start"] == "typical" and found.facts["items"][0]["distance"] < 1e-6
    encoder = tiny(TinyAutoencoder).eval().requires_grad_(False)
    assert project(encoder, torch.rand(1, 1, 8, 8), steps=1).facts["items"][0]["start"] == "encoder"
    assert project(build(GAN).eval(), torch.rand(1, 1, 8, 8), steps=1).facts["items"][0]["start"] == "sample"


def test_a_conditional_model_keeps_the_label_given_or_the_best_one():
    model = build(ConditionalGAN, spec(classes=3), latent_dim=4).eval().requires_grad_(False)
    for stage in model.ema.module.stages:
        torch.nn.init.normal_(stage.norm.shift.weight, std=3, generator=torch.Generator().manual_seed(0))
    wanted = model.decode(torch.zeros(3, 4), torch.arange(3))
    free, told = project(model, wanted, steps=2), project(model, wanted, steps=2, label="class 1")
    assert [item["index"] for item in free.facts["items"]] == [0, 1, 2]
    assert [item["index"] for item in told.facts["items"]] == [1, 1, 1]
    with pytest.raises(InputError, match="unknown class"):
        project(model, wanted, label=9)


def test_the_distance_is_the_error_at_three_sizes():
    made, image = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0] = 1.0
    assert distance(made, image).item() == pytest.approx(1 / 16 + (1 / 16) / 4)
    wide = torch.zeros(1, 1, 8, 8)
    assert distance(wide, wide + 1).item() == pytest.approx(3)


def test_the_step_size_rises_and_falls():
    assert lr_factor(0) == pytest.approx(0.2) and lr_factor(0.5) == 1 and lr_factor(0.875) == pytest.approx(0.5)
    assert lr_factor(1) == pytest.approx(0, abs=1e-12) and math.isclose(lr_factor(0.04), 1)
