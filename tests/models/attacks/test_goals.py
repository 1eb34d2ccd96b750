"""Attacks on translators, autoencoders and discriminators; success is checked on the returned images."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from models.attacks.criteria.latents import CloserTo, FarFrom, rms_distance
from models.capabilities import Decodes, Discriminates, Encodes, Translates
from models.family import Family
from models.operations.attack import AttackOperation, AttackParams
from models.operations.core.victims import victim_of
from models.types import ConfigError, DataSpec, InputError
from tests.models.attacks.nets import digits

OPERATION = AttackOperation()


class Maker(Encodes, Decodes, Translates, Discriminates, Family):
    """A small autoencoder with 8-dimensional codes, whose translation is its negated reconstruction."""

    name = "maker"
    latent_dim = 8
    directions = ("ab",)

    def __init__(self):
        super().__init__(None, DataSpec("plain", 8, 8, 1))
        self.inward = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 8))
        self.outward = nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 64), nn.Sigmoid())
        self.judge = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 1))

    def encode(self, images: Tensor) -> Tensor:
        return self.inward(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.outward(latents).view(-1, 1, 8, 8)

    def translate(self, images: Tensor, direction: str) -> Tensor:
        return 1 - self.decode(self.encode(images))

    def real_log_odds(self, images: Tensor) -> Tensor:
        return self.judge(images)[:, 0]

    def optimisers(self):
        raise NotImplementedError

    def step(self, batch, optimisers, context):
        raise NotImplementedError


@cache
def maker() -> Maker:
    """Trained for a second on real digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, images = Maker(), digits()[0][:1297]
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(20):
            for rows in torch.randperm(len(images)).split(64):
                loss = (model.decode(model.encode(images[rows])) - images[rows]).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval().requires_grad_(False)


def attack(images: Tensor, **params):
    model, params = maker(), AttackParams.model_validate(params)
    rows = OPERATION.rows(model, images, params)
    return model, OPERATION.result(model, rows, OPERATION.compute(model, rows, params), params)


def truth(model: Maker, goal: str, sent: Tensor, x: Tensor, aim: Tensor | None, reach: float) -> list[bool]:
    """Success computed from the model's outputs for the returned images."""
    made = {
        "latents": model.encode,
        "reconstruction": lambda images: model.decode(model.encode(images)),
        "translation": lambda images: model.translate(images, "ab"),
    }
    if goal == "realness":
        return ((model.real_log_odds(sent) > 0) != (model.real_log_odds(x) > 0)).tolist()
    make = made[goal]
    own = x if goal == "reconstruction" else make(x)
    if aim is not None:
        wanted = aim if goal == "reconstruction" else make(aim)
        return (rms_distance(make(sent), wanted) < rms_distance(make(sent), own)).tolist()
    unit = 1.0 if goal == "translation" else rms_distance(make(x.flip(2, 3) if goal == "latents" else x), own)
    return (rms_distance(make(sent), own) > reach * unit).tolist()


@pytest.mark.parametrize("method", ["fgsm", "pgd", "square"])
@pytest.mark.parametrize(("goal", "reach"), [("latents", 0.25), ("reconstruction", 1.1), ("translation", 0.06)])
def test_pushing_outputs_away_beats_noise_and_reports_true_success(goal, reach, method):
    x = digits()[0][1297:1309]
    config = {"queries": 60} if method == "square" else {}
    model, result = attack(x, method=method, eps="24/255", goal=goal, reach=reach, control=True, **config)
    told = [item["success"] for item in result.facts["items"]]
    assert told == truth(model, goal, result.images, x, None, reach)
    assert sum(told) >= 5
    assert sum(told) > 1.5 * sum(item["control"]["success"] for item in result.facts["items"])
    assert (result.images - x).abs().max() <= 24 / 255 + 1e-6


@pytest.mark.parametrize("goal", ["latents", "reconstruction", "translation"])
def test_success_means_output_closer_to_target_than_to_origin(goal):
    images = digits()[0][1297:1306]
    model, result = attack(images, method="pgd", eps=0.5, goal=goal, towards="last", control=True)
    x, aim = images[:-1], images[-1:].expand(8, -1, -1, -1)
    assert len(result.images) == 8
    told = [item["success"] for item in result.facts["items"]]
    unwon = [not item["initially_wrong"] for item in result.facts["items"]]
    assert told == [a and b for a, b in zip(truth(model, goal, result.images, x, aim, 0), unwon, strict=True)]
    assert sum(told) > sum(item["control"]["success"] for item in result.facts["items"])
    for item in result.facts["items"]:
        closer = item["adversarial"]["to_target"] < item["clean"]["to_target"]
        assert closer or item["initially_wrong"]


def test_attack_on_discriminator_reports_realness():
    x = digits()[0][1297:1305]
    model, result = attack(x, method="pgd", eps=0.3, goal="realness", sweep=[0.02, 0.3])
    told = [item["success"] for item in result.facts["items"]]
    assert told == truth(model, "realness", result.images, x, None, 0)
    assert sum(told) >= 6
    assert {item["clean"]["label"] for item in result.facts["items"]} <= {"real", "generated"}


def test_minimum_norm_attack_on_codes_finds_the_distance():
    x = digits()[0][:6]
    _, result = attack(x, method="ddn", goal="latents", reach=0.3, sweep=True)
    for item in result.facts["items"]:
        assert item["success"] and item["adversarial"]["distance"] >= item["adversarial"]["wanted"] * (1 - 1e-5)
        flips = [point["success"] for point in item["sweep"]]
        assert flips == sorted(flips)


def test_loss_has_a_gradient_at_the_origin():
    origin = torch.zeros(2, 3, requires_grad=True)
    for criterion in (FarFrom(torch.zeros(2, 3), torch.ones(2)), CloserTo(torch.ones(2, 3), torch.zeros(2, 3))):
        for value in (criterion.loss(origin), criterion.surfaces(origin, 1)[:, 0]):
            (slope,) = torch.autograd.grad(value.sum(), origin, retain_graph=True)
            assert torch.isfinite(slope).all() and (slope != 0).any()


def test_default_goal_is_the_first_supported_one():
    assert victim_of(maker(), AttackParams()).goals == ("translation",)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"goal": "vanish"}, "goal"),
        ({"goal": "latents", "label": 3}, "label"),
        ({"goal": "latents", "target": 3}, "target"),
        ({"goal": "latents", "direction": "ab"}, "direction"),
        ({"goal": "latents", "towards": "last"}, "towards"),
        ({"goal": "latents", "method": "hopskipjump"}, "method"),
        ({"goal": "latents", "method": "autoattack"}, "method"),
        ({"goal": "translation", "direction": "ba"}, "direction"),
        ({"goal": "realness", "reach": 0.5}, "reach"),
        ({"goal": "realness", "target": "true"}, "target"),
    ],
)
def test_goal_errors_name_the_unused_parameter(params, field):
    with pytest.raises((ConfigError, InputError)) as caught:
        attack(digits()[0][:1], **params)
    assert caught.value.field == field
